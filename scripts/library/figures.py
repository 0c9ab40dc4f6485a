"""Figures of results: a backend has the same colour, and a loss the same red, in all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "codec": "#d62728",
    "flashinfer": "#1f77b4",
    "fa3": "#6baed6",
    "triton": "#b3cde3",
    "cascade": "#2ca02c",
    "fasttree": "#98df8a",
    "pat": "#bcbd22",
}
_OTHERS = ("#999999", "#bbbbbb", "#777777")
LOSS, WIN = "#d62728", "#4c78a8"
LOSING = 0.97  # a row below this share of the best stock backend's speed loses
LEAST_WIDTH = 4  # groups: a shorter panel keeps its bars narrow


def panels(rows: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure of panels, one below the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(rows, 1, squeeze=False)[:, 0])


def save(figure: Figure, title: str, path: Path, dpi: int = 110) -> Path:
    """Write a PNG file, making its folder if need be."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    return path


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """A colour per backend; a pair has that of the backend that decodes."""
    others = iter(_OTHERS * len(names))
    return {name: COLOURS.get(name.split("/")[-1]) or next(others) for name in names}


def grouped_bars(
    axis: Axes,
    names: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    limits: Sequence[float | None],
    notes: Mapping[tuple[str, int], str],
) -> None:
    """Groups of bars on a log scale, a line for what is possible in each.

    Args:
        series: for each backend a value per group, None where it has none.
        limits: what is possible in each group.
        notes: what to write above the bar of a backend in a group.
    """
    width, colours = 0.86 / len(series), colours_of(list(series))
    values = [value for own in series.values() for value in own if value]
    for i, (backend, own) in enumerate(series.items()):
        offset = (i - (len(series) - 1) / 2) * width
        bars = [(x, value) for x, value in enumerate(own) if value]
        where = [x + offset for x, _ in bars]
        heights = [value for _, value in bars]
        axis.bar(where, heights, width, color=colours[backend], label=backend)
        for x, value in bars:
            if note := notes.get((backend, x)):
                at = (x + offset, value)
                turn = 90 if len(names) > 16 else 0
                axis.annotate(note, at, ha="center", va="bottom", fontsize=6.5, rotation=turn)
    lines(axis, limits)
    # log bars have no natural foot: they start a little below everything that is drawn
    axis.set_yscale("log")
    every = [*values, *filter(None, limits)]
    axis.set_ylim(min(every) / 1.6, max(every) * 1.3)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    name_groups(axis, names)


def gain_bars(
    axis: Axes,
    names: Sequence[str],
    ratios: Sequence[float],
    possible: Sequence[float | None] = (),
) -> None:
    """Bars from 1x: up is faster, down is slower, and what loses is red."""
    colours = [LOSS if ratio < LOSING else WIN for ratio in ratios]
    axis.bar(range(len(ratios)), [ratio - 1 for ratio in ratios], 0.7, bottom=1, color=colours)
    for x, ratio in enumerate(ratios):
        axis.annotate(
            f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}",
            (x, ratio),
            xytext=(0, 2 if ratio >= 1 else -2),
            textcoords="offset points",
            ha="center",
            va="bottom" if ratio >= 1 else "top",
            fontsize=7,
            color=LOSS if ratio < LOSING else "black",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.4},
        )
    lines(axis, possible)
    axis.axhline(1, color="#444444", lw=0.8)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    top = max([*ratios, *filter(None, possible)])
    axis.set_ylim(min(0.7, min(ratios) / 1.25), max(1.5, top * 1.3))
    name_groups(axis, names)


def lines(axis: Axes, limits: Sequence[float | None]) -> None:
    """A black line across each group that has a limit."""
    known = [(x, limit) for x, limit in enumerate(limits) if limit]
    if known:
        where, at = zip(*known, strict=True)
        ends = [x - 0.45 for x in where], [x + 0.45 for x in where]
        axis.hlines(at, *ends, color="black", lw=1.5, label="limit")


def name_groups(axis: Axes, names: Sequence[str]) -> None:
    """Names below the groups, upright where there are many, and a grid behind the bars."""
    axis.set_xticks(range(len(names)), names, rotation=90 if len(names) > 16 else 0, fontsize=8)
    axis.set_xlim(-0.7, max(len(names), LEAST_WIDTH) - 0.3)
    axis.grid(axis="y", which="both", color="#e6e6e6", lw=0.6)
    axis.set_axisbelow(True)


def legend(figure: Figure) -> None:
    """One for all panels, each of which has only what its rows need."""
    of_label = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        of_label |= dict(zip(labels, handles, strict=True))
    place = {"loc": "outside lower right", "ncols": len(of_label)}
    figure.legend(of_label.values(), of_label.keys(), **place, fontsize=9, frameon=False)
