"""One picture of the results: speed, batches, and KV tokens read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workloads.runs import BackendRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#8c96a3", "#1f77b4", "#2ca02c", "#d58936", "#9467bd", "#b5504b")


def forest_picture(plot: Path | None, run: BackendRun) -> Path | None:
    """Where a run's forest and plan are drawn: beside the plot, if there is one."""
    if plot is None:
        return None
    return plot.with_stem(f"{plot.stem}-{run.backend.replace('/', '-').replace(' ', '-')}-forest")


def draw(path: Path, title: str, runs: Sequence[BackendRun]) -> None:
    """Draw all runs to a PNG file, making the folder if need be."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shared = [run for run in runs if run.sharing is not None]
    panels = 3 if shared else 2
    figure, axes = pyplot.subplots(1, panels, figsize=(4.2 * panels, 3.6), layout="constrained")
    if os.environ.get("TRITON_INTERPRET") == "1":
        title += " (kernels interpreted: the times say nothing about speed)"
    figure.suptitle(title)
    _draw_tpot(axes[0], runs)
    _draw_batches(axes[1], runs)
    if shared:
        _draw_reads(axes[2], shared)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _colours(count: int) -> list[str]:
    return [_COLOURS[number % len(_COLOURS)] for number in range(count)]


def _draw_tpot(axes: Axes, runs: Sequence[BackendRun]) -> None:
    heights = [run.mean_tpot_ms or 0.0 for run in runs]
    bars = axes.bar([run.backend for run in runs], heights, color=_colours(len(runs)))
    axes.bar_label(bars, fmt="%.1f")
    axes.set_title("time per output token, ms")
    axes.margins(y=0.15)


def _draw_batches(axes: Axes, runs: Sequence[BackendRun]) -> None:
    width = 0.8 / len(runs)
    for number, run in enumerate(runs):
        places = [place + number * width for place in range(len(run.batches))]
        speeds = [batch.output_tokens / batch.wall_s for batch in run.batches]
        colour = _COLOURS[number % len(_COLOURS)]
        axes.bar(places, speeds, width, label=run.backend, color=colour)
    batches = runs[0].batches
    labels = [f"{batch.label}\n{len(batch.completions)} requests" for batch in batches]
    centre = width * (len(runs) - 1) / 2
    axes.set_xticks([place + centre for place in range(len(batches))], labels)
    axes.set_title("output tokens per second")
    axes.legend()


def _draw_reads(axes: Axes, runs: Sequence[BackendRun]) -> None:
    for number, run in enumerate(runs):
        sharing = run.sharing
        assert sharing is not None
        pair = (sharing.kv_tokens_stock, sharing.kv_tokens_read)
        names = (f"stock\nfor {run.backend}", f"{run.backend}\n{sharing.saved:.0%} saved")
        bars = axes.bar(names, pair, color=(_COLOURS[0], _colours(2 + number)[-1]))
        axes.bar_label(bars, fmt="{:,.0f}")
    axes.set_title("KV tokens read")
    axes.margins(y=0.15)
