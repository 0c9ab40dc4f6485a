"""Figures of a kernel report: times against the limit, and gain over the best stock backend."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from library.attention.summary import LOSING, STOCK, best, gain, geometric_mean
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

COLOURS = {
    "codec": "#d62728",
    "flashinfer": "#1f77b4",
    "fa3": "#6baed6",
    "fa3p16": "#9ecae1",
    "fa3p64": "#c6dbef",
    "triton": "#b3cde3",
    "cascade": "#2ca02c",
    "fasttree": "#98df8a",
    "pat": "#bcbd22",
}
OTHER_COLOUR = "#999999"
LOSS_COLOUR = "#d62728"
WIN_COLOUR = "#4c78a8"
ROWS_PER_PANEL = 40
PANEL_WIDTH = 17.0
LEAST_WIDTH = 16  # rows: a shorter panel keeps its bars narrow


def times_figure(title: str, rows: list[dict]) -> Figure:
    """Grouped bars of microseconds per layer on a log scale, one panel per head configuration."""
    panels = by(rows, lambda row: row["heads"])
    peers = [peer for peer in COLOURS if any(peer in row["us"] for row in rows)]
    peers += sorted({peer for row in rows for peer in row["us"]} - set(peers))
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(PANEL_WIDTH, 1.2 + 3.5 * len(panels)), squeeze=False
    )
    for axis, (heads, members) in zip(axes[:, 0], panels.items(), strict=True):
        _times_panel(axis, members, peers)
        axis.set_title(f"{heads} query / KV heads", loc="left", fontsize=10)
    _legend(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    return figure


def _times_panel(axis: Axes, rows: list[dict], peers: list[str]) -> None:
    where = np.arange(len(rows))
    width = 0.86 / len(peers)
    for i, peer in enumerate(peers):
        us = [row["us"].get(peer, np.nan) for row in rows]
        offset = (i - (len(peers) - 1) / 2) * width
        axis.bar(where + offset, us, width, color=COLOURS.get(peer, OTHER_COLOUR), label=peer)
        for x, row in zip(where, rows, strict=True):
            if peer in row["wrong"]:
                at = (x + offset, row["us"][peer])
                axis.annotate("wrong", at, rotation=90, fontsize=6, ha="center")
    limits = [row["limit_us"] for row in rows]
    axis.hlines(limits, where - 0.46, where + 0.46, color="black", lw=1.6, label="hardware limit")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    # log bars have no natural foot: let them start a little below everything that is drawn
    lowest = min(min(limits), *(min(row["us"].values(), default=np.inf) for row in rows))
    axis.set_ylim(bottom=lowest / 1.6)
    axis.set_ylabel("µs per layer")
    axis.grid(axis="y", which="both", color="#e6e6e6", lw=0.6)
    axis.set_axisbelow(True)
    name_rows(axis, where, [row["name"] for row in rows])


def gains_figure(title: str, rows: list[dict]) -> Figure:
    """`codec` over the best stock backend, row by row; what loses is marked."""
    rows = [row for row in rows if gain(row) is not None]
    panels: dict[str, list[dict]] = {}
    for table, members in by(rows, lambda row: row["table"]).items():
        pages = -(-len(members) // ROWS_PER_PANEL)
        size = -(-len(members) // pages)
        for page in range(pages):
            part = f"{table} ({page + 1} of {pages})" if pages > 1 else table
            panels[part] = members[page * size : (page + 1) * size]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(PANEL_WIDTH, 1.0 + 3.6 * len(panels)), squeeze=False
    )
    for axis, (part, members) in zip(axes[:, 0], panels.items(), strict=True):
        _gains_panel(axis, members)
        of_table = [gain(row) for row in rows if row["table"] == members[0]["table"]]
        mean = geometric_mean(of_table)
        losing = sum(ratio < LOSING for ratio in of_table)
        axis.set_title(
            f"{part}: geometric mean of the table {mean:.2f}x, {losing} of {len(of_table)} rows "
            f"below {LOSING}x",
            loc="left",
            fontsize=10,
        )
    _legend(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    return figure


def _legend(figure: Figure) -> None:
    """One for all panels, each of which has only what its rows need."""
    of_label: dict[str, Artist] = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        of_label |= dict(zip(labels, handles, strict=True))
    place = {"loc": "upper right", "ncols": len(of_label)}
    figure.legend(of_label.values(), of_label.keys(), **place, fontsize=9, frameon=False)


def _gains_panel(axis: Axes, rows: list[dict]) -> None:
    where = np.arange(len(rows))
    ratios = np.array([gain(row) for row in rows])
    possible = [best(row, STOCK)[1] / row["limit_us"] for row in rows]
    for losing, colour, label in (
        (False, WIN_COLOUR, "codec / best stock backend"),
        (True, LOSS_COLOUR, f"losing (below {LOSING}x)"),
    ):
        pick = (ratios < LOSING) == losing
        # bars grow from 1x: up is faster, down is slower
        if pick.any():
            axis.bar(where[pick], ratios[pick] - 1, 0.7, bottom=1, color=colour, label=label)
    axis.hlines(
        possible, where - 0.42, where + 0.42, color="black", lw=1.2, label="at the hardware limit"
    )
    for x, ratio in zip(where, ratios, strict=True):
        above = ratio >= 1
        axis.annotate(
            f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}",
            (x, ratio),
            xytext=(0, 2 if above else -2),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=6.5,
            color=LOSS_COLOUR if ratio < LOSING else "black",
            fontweight="bold" if ratio < LOSING else "normal",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.4},
        )
    axis.axhline(1, color="#444444", lw=0.8)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    top = max(ratios.max(), max(possible))
    axis.set_ylim(min(0.7, ratios.min() / 1.25), top * 1.3)
    axis.set_ylabel("speed-up")
    axis.grid(axis="y", color="#e6e6e6", lw=0.6)
    axis.set_axisbelow(True)
    several = len({row["heads"] for row in rows}) > 1
    names = [f"{row['name']} {row['heads']}" if several else row["name"] for row in rows]
    name_rows(axis, where, names)
    for label, ratio in zip(axis.get_xticklabels(), ratios, strict=True):
        label.set_color(LOSS_COLOUR if ratio < LOSING else "black")


def name_rows(axis: Axes, where: np.ndarray, names: list[str]) -> None:
    axis.set_xticks(where, names, rotation=90 if len(names) > 16 else 0, fontsize=8)
    axis.set_xlim(-0.7, max(len(names), LEAST_WIDTH) - 0.3)


def by(rows: list[dict], key: Callable[[dict], str]) -> dict[str, list[dict]]:
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups
