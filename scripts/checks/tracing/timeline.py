"""The picture of a profile: what the host does while the GPU works, around a step with a plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from library.figures import panels, save

from tracing.chrome_trace import Profile, Span, Step
from tracing.overlap import Handover

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PLAN, _STEP, _LOOP = "#d62728", "#4c78a8", "#d9d9d9"
_GPU = ("#2f8f5b", "#8fd0a8")
_STEPS_BEFORE, _STEPS_AFTER = 2, 3
_HOST, _DEVICE = 1.0, 0.0
_HEIGHT = 0.5


def window(profile: Profile, found: Sequence[Handover]) -> range:
    """Numbers of the steps to draw: around a plan after a decode step, or else around any plan."""
    planned = [step for step in found if step.plan_us is not None]
    best = [step for step in planned if step.after == "DECODE"] or planned or list(found)
    middle = best[len(best) // 2].number if best else 0
    first = max(0, middle - _STEPS_BEFORE)
    return range(first, min(len(profile.steps), middle + _STEPS_AFTER + 1))


def draw(profile: Profile, found: Sequence[Handover], title: str, path: Path) -> None:
    """Draw a few steps to a PNG file, making the folder if need be."""
    shown = window(profile, found)
    steps = [profile.steps[number] for number in shown]
    start = min([steps[0].host.start, *(s.start for s in steps[0].device)])
    end = max([step.host.end for step in steps] + [s.end for step in steps for s in step.device])
    figure, (axes,) = panels(1, (14, 3.6))
    _draw_host(axes, profile, steps, start, end)
    _draw_device(axes, shown, steps, start)
    _note_idle(axes, [f for f in found if f.number in shown[1:]], profile, start)
    axes.set_yticks([_DEVICE, _HOST], ["GPU", "host"])
    axes.set_ylim(_DEVICE - 0.6, _HOST + 0.75)
    axes.set_xlim(0, (end - start) / 1e3)
    axes.set_xlabel("ms")
    axes.legend(ncols=5, fontsize=9, frameon=False, loc="upper right", bbox_to_anchor=(1, 1.12))
    axes.grid(axis="x", color="#e6e6e6", lw=0.6)
    axes.set_axisbelow(True)
    save(figure, title, path)


def _bars(
    axes: Axes,
    spans: Sequence[Span],
    row: float,
    start: float,
    colour: str,
    label: str | None,
    height: float = _HEIGHT,
) -> None:
    bars = [((span.start - start) / 1e3, max(span.us, 0.0) / 1e3) for span in spans]
    if bars:
        axes.broken_barh(bars, (row - height / 2, height), color=colour, lw=0, label=label)


def _draw_host(
    axes: Axes, profile: Profile, steps: Sequence[Step], start: float, end: float
) -> None:
    loop = [span for span in profile.scheduler if span.end > start and span.start < end]
    _bars(axes, loop, _HOST, start, _LOOP, "scheduler")
    _bars(axes, [step.host for step in steps], _HOST, start, _STEP, "forward pass", 0.38)
    plans = [step.plan for step in steps if step.plan is not None]
    _bars(axes, plans, _HOST, start, _PLAN, "codec: plan and upload", 0.38)
    for step in steps:
        at = (step.host.start - start) / 1e3
        name = step.host.name.removeprefix("step[").removesuffix("]")
        axes.annotate(name, (at, _HOST + 0.28), fontsize=7, rotation=12)
    launches = [(step.launch - start) / 1e3 for step in steps if step.launch is not None]
    if launches:
        rows = [_HOST - 0.34] * len(launches)
        axes.plot(launches, rows, "v", color="black", ms=5, label="launch")


def _draw_device(axes: Axes, shown: range, steps: Sequence[Step], start: float) -> None:
    if not any(step.device for step in steps):
        axes.annotate("no GPU in this profile", (0, _DEVICE), color="#777777")
    for number, step in zip(shown, steps, strict=True):
        label = "kernels, by step" if number == shown[0] else None
        _bars(axes, step.device, _DEVICE, start, _GPU[number % 2], label)


def _note_idle(axes: Axes, found: Sequence[Handover], profile: Profile, start: float) -> None:
    for handover in found:
        step = profile.steps[handover.number]
        if handover.idle_us is None or step.forward is None:
            continue
        colour = _PLAN if handover.plan_us is not None else "#444444"
        at = (step.forward.start - start) / 1e3
        axes.annotate(
            f"idle {handover.idle_us:,.0f} µs",
            (at, _DEVICE - 0.28),
            xytext=(0, -12),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6},
        )
