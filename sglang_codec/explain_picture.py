"""The picture of a forest and its plan: what is shared above, what each program slot does below."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sglang_codec.explain_view import Chunk, InputError, Run, View, summary

_WIDTH = 13.0  # inches
_DPI = 130
_FONT, _SMALL_FONT = 8.0, 6.0  # points
_MOST_NAMED_ROWS = 40
_MOST_BOXES = 20_000
_IDLE = {"facecolor": "#efefef", "edgecolor": "#c4c4c4", "hatch": "///", "linewidth": 0.0}
_OUTLINE = "#222222"

Colour = tuple[float, ...]
Box = tuple[float, float, float, float]


def draw_view(view: View, path: Path) -> None:
    """Draw a view into a file.

    Raises:
        InputError: nothing to draw, too much, or an unknown format.
    """
    if not view.runs or not view.chunks:
        raise InputError("the dump has no forest with a plan, so there is nothing to draw")
    if len(view.runs) + len(view.chunks) > _MOST_BOXES:
        raise InputError(
            f"{len(view.runs)} runs and {len(view.chunks)} tasks make a picture of more than "
            f"{_MOST_BOXES} boxes; use the text"
        )
    rows = min(max(0.2 * len(view.order), 1.8), 5.5)
    slots = min(max(0.14 * len(view.slots), 1.4), 5.0)
    figure = Figure(figsize=(_WIDTH, rows + slots + 2.6), dpi=_DPI, layout="constrained")
    forest, gantt = figure.subplots(2, 1, height_ratios=(rows, slots))
    figure.suptitle("\n".join(summary(view)), fontsize=10, x=0.01, ha="left")
    colours = _colours(view)
    _draw_forest(forest, view, colours, rows)
    _draw_slots(gantt, view, colours, slots)
    try:
        figure.savefig(path)
    except (ValueError, OSError) as error:
        raise InputError(f"cannot write {path}: {error}") from error


def _colours(view: View) -> list[Colour]:
    """A light colour per program slot; neighbouring slots differ clearly."""
    rainbow = matplotlib.colormaps["turbo"]
    count = len(view.slots)
    # golden-ratio steps visit the whole scale
    bright = [rainbow(0.05 + 0.9 * (slot * 0.618034 % 1.0))[:3] for slot in range(count)]
    return [tuple(0.5 + 0.5 * part for part in colour) for colour in bright]


class _Labels:
    """Text in boxes that have room for it."""

    def __init__(self, axes: Axes, x_span: float, y_span: float, height: float) -> None:
        self._axes = axes
        # points per data unit; about a seventh of the width goes to margins and axis labels
        self._x = (_WIDTH - 1.8) * 72 / x_span
        self._y = height * 72 / y_span

    def fitting(self, box: Box, texts: list[str], font: float) -> str:
        """The first of `texts` that fits the box, or nothing."""
        _, _, width, height = box
        for text in texts:
            wide, high = _points(text, font)
            if wide <= width * self._x and high <= height * self._y:
                return text
        return ""

    def centre(self, box: Box, texts: list[str]) -> None:
        """Write the first of `texts` that fits into the middle of the box."""
        x, y, width, height = box
        style = {"ha": "center", "va": "center", "fontsize": _SMALL_FONT}
        text = self.fitting(box, texts, _SMALL_FONT)
        self._axes.text(x + width / 2, y + height / 2, text, **style)

    def top_left(self, box: Box, texts: list[str]) -> str:
        """Write the first of `texts` that fits into the box's upper left corner; return it."""
        text = self.fitting(box, texts, _FONT)
        x, y, _, height = box
        _, high = _points(text, _FONT)
        # a box with room for little more than the text has it in the middle
        inset = min((height * self._y - high) / 2, 4) / self._y
        place = (x + 4 / self._x, y + max(inset, 0))
        self._axes.text(*place, text, ha="left", va="top", fontsize=_FONT)
        return text

    def bottom_right(self, box: Box, texts: list[str], beside: str) -> None:
        """Write into the lower right corner, unless `beside` in the upper left is in the way."""
        x, y, width, height = box
        other_wide, other_high = _points(beside, _FONT)
        below = (x, y, width, height - (other_high + 4) / self._y)
        to_the_right = (x, y, width - (other_wide + 12) / self._x, height)
        text = self.fitting(below, texts, _SMALL_FONT)
        text = text or self.fitting(to_the_right, texts, _SMALL_FONT)
        place = (x + width - 3 / self._x, y + height - 2 / self._y)
        self._axes.text(*place, text, ha="right", va="bottom", fontsize=_SMALL_FONT)


def _points(text: str, font: float) -> tuple[float, float]:
    """Width and height of a text, with a little room around it."""
    lines = text.split("\n")
    return max(map(len, lines)) * font * 0.58 + 8, len(lines) * font * 1.25


def _draw_forest(axes: Axes, view: View, colours: list[Colour], height: float) -> None:
    tokens = max(run.start + run.length for run in view.runs)
    rows = len(view.order)
    labels = _Labels(axes, tokens, rows, height)
    for chunk in view.chunks:
        style = {"facecolor": colours[chunk.slot], "edgecolor": "white"}
        thick = 0.6 if rows <= 128 else 0.1
        size = (chunk.tokens, chunk.queries)
        axes.add_patch(Rectangle((chunk.start, chunk.first), *size, linewidth=thick, **style))
    beside = []
    for run in view.runs:
        if not run.length:
            continue
        box = (run.start, run.first, run.length, run.readers)
        style = {"linestyle": "--"} if run.is_absorbed else {}
        thick = 1.1 if run.row < 0 else 0.35
        outline = {"fill": False, "edgecolor": _OUTLINE, "linewidth": thick}
        axes.add_patch(Rectangle(box[:2], *box[2:], **outline, **style))
        label = labels.top_left(box, _run_texts(run))
        if run.row >= 0 and not label:
            beside.append(run)
        if run.row < 0:
            for chunk in run.chunks:
                box = (chunk.start, chunk.first, chunk.tokens, chunk.queries)
                labels.bottom_right(box, [f"slot {chunk.slot}", f"{chunk.slot}"], label)
    for x, y, text in _notes(beside, rows):
        axes.annotate(text, (x, y), (5, 0), textcoords="offset points", fontsize=_FONT, va="center")
    axes.set_xlim(0, tokens)
    axes.set_ylim(rows, 0)
    axes.set_title(
        "The KV of the batch: an outlined box is a run that is read once for all the requests it "
        "spans; its parts are tasks, coloured by program slot",
        fontsize=9,
        loc="left",
    )
    axes.set_xlabel("token position in the request", fontsize=9)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if rows <= _MOST_NAMED_ROWS:
        axes.set_yticks([row + 0.5 for row in range(rows)], [str(row) for row in view.order])
        axes.set_ylabel("request", fontsize=9)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("requests, depth first", fontsize=9)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _run_texts(run: Run) -> list[str]:
    """Labels of a run, the most telling first."""
    if run.row >= 0:
        return [_tail_text(run)]
    facts = f"{run.length:,} tokens, {run.readers:,} readers"
    if run.is_absorbed:
        return [f"{run.name}\n{facts}\nabsorbed", f"{run.name} absorbed", "absorbed"]
    short = run.label or f"run {run.node}"
    return [f"{run.name}\n{facts}", f"{run.name}: {facts}", f"{short}\n{run.length:,}", short]


def _tail_text(run: Run) -> str:
    return f"{run.label}: {run.length:,} tokens" if run.label else f"{run.length:,} tokens"


def _notes(tails: list[Run], rows: int) -> Iterator[tuple[float, float, str]]:
    """What stands beside tails that are too small for a label: each its own, or one for all."""
    if rows <= _MOST_NAMED_ROWS:
        for run in tails:
            yield run.start + run.length, run.first + 0.5, _tail_text(run)
    elif tails:
        low, high = min(run.length for run in tails), max(run.length for run in tails)
        size = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        end = max(run.start + run.length for run in tails)
        yield end, rows / 2, f"{len(tails)} private tails\nof {size} tokens"


def _draw_slots(axes: Axes, view: View, colours: list[Colour], height: float) -> None:
    count = len(view.slots)
    labels = _Labels(axes, view.makespan, count, height)
    axes.add_patch(Rectangle((0, 0), view.makespan, count, **_IDLE))
    for slot, chunks in enumerate(view.slots):
        us = 0.0
        for chunk in chunks:
            style = {"facecolor": colours[slot], "edgecolor": "white", "linewidth": 0.4}
            axes.add_patch(Rectangle((us, slot), chunk.us, 1, **style))
            texts = _task_texts(chunk, view.runs[chunk.node])
            labels.centre((us, slot, chunk.us, 1), texts)
            us += chunk.us
    axes.set_xlim(0, view.makespan)
    axes.set_ylim(count, 0)
    step = -(-count // 40)
    axes.set_yticks(
        [slot + 0.5 for slot in range(0, count, step)], list(map(str, range(0, count, step)))
    )
    axes.set_title(
        "What the program slots do, for one KV head: a line is a slot, its tasks have its colour",
        fontsize=9,
        loc="left",
    )
    axes.set_xlabel("predicted time (us)", fontsize=9)
    axes.set_ylabel("program slot", fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", labelsize=6)
    idle = Patch(label=f"idle ({1 - view.balance:.0%})", **_IDLE)
    place = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0)}
    axes.legend(handles=[idle], fontsize=8, frameon=False, **place)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _task_texts(chunk: Chunk, run: Run) -> list[str]:
    name = run.label or (f"request {run.row}" if run.row >= 0 else f"run {run.node}")
    tokens = f"{chunk.start:,}..{chunk.start + chunk.tokens:,}"
    return [f"{name}: tokens {tokens}", name]
