"""Large batches: what their bytes take at bandwidth, by kind, beside what `codec` takes."""

from __future__ import annotations

import numpy as np
from library.attention import traffic
from library.attention.summary import best
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plots import COLOURS, PANEL_WIDTH, by, name_rows

LARGE_BATCH = 256  # above it Q, O and partials are no longer small beside KV
KIND_COLOURS = {
    "kv": "#4c78a8",
    "q": "#72b7b2",
    "o": "#54a24b",
    "partial_write": "#f58518",
    "partial_read": "#ffbf79",
}


def large_batches(rows: list[dict]) -> list[dict]:
    """Rows of more than `LARGE_BATCH` requests whose bytes are known."""
    return [row for row in rows if row["batch"] > LARGE_BATCH and traffic.all_bytes_us(row)]


def bytes_figure(title: str, rows: list[dict]) -> Figure:
    """Stacked bars of microseconds at bandwidth, one panel per table and head configuration.

    The percentage is the share of the limit with all bytes that `codec` reaches.
    """
    panels = by(rows, lambda row: f"{row['table']} {row['heads']}")
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(PANEL_WIDTH, 1.2 + 3.0 * len(panels)), squeeze=False
    )
    for axis, (panel, members) in zip(axes[:, 0], panels.items(), strict=True):
        _panel(axis, members)
        axis.set_title(f"{panel} query / KV heads", loc="left", fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=len(labels), fontsize=9, frameon=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    return figure


def _panel(axis: Axes, rows: list[dict]) -> None:
    where = np.arange(len(rows))
    foot = np.zeros(len(rows))
    for kind in traffic.KINDS:
        us = np.array([kind_us(row)[kind] for row in rows])
        axis.bar(
            where, us, 0.6, bottom=foot, color=KIND_COLOURS[kind], label=kind.replace("_", " ")
        )
        foot += us
    ours = [mine[1] if (mine := best(row, ("codec",))) else np.nan for row in rows]
    axis.plot(where, ours, "D", color=COLOURS["codec"], ms=5, label="codec")
    limits = [row["limit_us"] for row in rows]
    axis.hlines(
        limits, where - 0.42, where + 0.42, color="black", lw=1.4, label="limit of KV alone"
    )
    for x, row, us, full in zip(where, rows, ours, foot, strict=True):
        if np.isfinite(us):
            share = max(full, row.get("compute_us", 0.0)) / us
            axis.annotate(
                f"{share:.0%}",
                (x, max(us, full)),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=7,
            )
    axis.set_ylim(0, 1.15 * np.nanmax([*ours, *foot]))
    axis.set_ylabel("µs per layer")
    axis.grid(axis="y", color="#e6e6e6", lw=0.6)
    axis.set_axisbelow(True)
    name_rows(axis, where, [row["name"] for row in rows])


def kind_us(row: dict) -> dict[str, float]:
    """Microseconds at bandwidth of each kind of bytes of a row."""
    split = traffic.of_row(row)
    return {kind: row["bandwidth_us"] * split[kind] / split["kv"] for kind in traffic.KINDS}
