"""One picture of the results: speed, batches, and KV tokens read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from library.figures import colours_of, panels, save

from workloads.runs import BackendRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def forest_picture(plot: Path | None, run: BackendRun) -> Path | None:
    """Where a run's forest and plan are drawn: beside the plot, if there is one."""
    if plot is None:
        return None
    return plot.with_stem(f"{plot.stem}-{run.backend.replace('/', '-').replace(' ', '-')}-forest")


def draw(path: Path, title: str, runs: Sequence[BackendRun]) -> None:
    """Draw all runs to a PNG file, making the folder if need be."""
    shared = [run for run in runs if run.sharing is not None]
    figure, axes = panels(3 if shared else 2, (7, 9 if shared else 6))
    if os.environ.get("TRITON_INTERPRET") == "1":
        title += "\n(kernels interpreted: the times say nothing about speed)"
    colours = colours_of([run.backend for run in runs])
    heights = [run.mean_tpot_ms or 0.0 for run in runs]
    bars = axes[0].bar(list(colours), heights, color=colours.values())
    axes[0].bar_label(bars, fmt="%.1f")
    axes[0].set_title("time per output token, ms")
    _draw_batches(axes[1], runs, colours)
    if shared:
        _draw_reads(axes[2], shared, colours)
    for axis in axes:
        axis.margins(y=0.15)
    save(figure, title, path)


def _draw_batches(axes: Axes, runs: Sequence[BackendRun], colours: dict[str, str]) -> None:
    width = 0.8 / len(runs)
    for number, run in enumerate(runs):
        places = [place + number * width for place in range(len(run.batches))]
        speeds = [batch.output_tokens / batch.wall_s for batch in run.batches]
        axes.bar(places, speeds, width, label=run.backend, color=colours[run.backend])
    batches = runs[0].batches
    labels = [f"{batch.label}\n{len(batch.completions)} requests" for batch in batches]
    centre = width * (len(runs) - 1) / 2
    axes.set_xticks([place + centre for place in range(len(batches))], labels)
    axes.set_title("output tokens per second")
    axes.legend()


def _draw_reads(axes: Axes, runs: Sequence[BackendRun], colours: dict[str, str]) -> None:
    for run in runs:
        stock, read = run.sharing.kv_tokens_stock, run.sharing.kv_tokens_read
        names = (f"stock\nfor {run.backend}", f"{run.backend}\n{run.sharing.saved:.0%} saved")
        bars = axes.bar(names, (stock, read), color=("#999999", colours[run.backend]))
        axes.bar_label(bars, fmt="{:,.0f}")
    axes.set_title("KV tokens read")
