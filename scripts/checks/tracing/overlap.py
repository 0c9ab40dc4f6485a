"""Is planning hidden behind the GPU's work of the step before?"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tracing.chrome_trace import Profile, Span, Step, merged

# with speculation a step verifies what was drafted
_DECODES = frozenset({"DECODE", "VERIFY"})


@dataclass(frozen=True, slots=True)
class Handover:
    """A step that decodes or verifies, after another step, in microseconds.

    Args:
        number: of the step in the profile.
        after: kind of the step before.
        plan_us: host time of planning, None if the step made no plan.
        idle_us: time between the two forward passes in which the GPU did nothing; None without GPU.
        lead_us: how long before the GPU ended the step before, the host had launched this one;
            negative if the GPU had to wait for the host.
        host_us: host time of the step.
    """

    number: int
    after: str
    plan_us: float | None
    idle_us: float | None
    lead_us: float | None
    host_us: float


def handovers(profile: Profile) -> list[Handover]:
    """All such steps but the first, which has no step before it, and the last if it was cut."""
    busy = merged(span for step in profile.steps for span in step.device)
    pairs = zip(profile.steps, profile.steps[1:], strict=False)
    return [
        _handover(number, before, step, busy)
        for number, (before, step) in enumerate(pairs, start=1)
        if step.kind in _DECODES
    ]


def idle_us(start: float, end: float, busy: Sequence[Span]) -> float:
    """Time from start to end that no busy span covers."""
    covered = sum(max(0.0, min(end, span.end) - max(start, span.start)) for span in busy)
    return max(0.0, end - start - covered)


def _handover(number: int, before: Step, step: Step, busy: Sequence[Span]) -> Handover:
    on_gpu = before.forward is not None and step.forward is not None
    return Handover(
        number=number,
        after=before.kind,
        plan_us=step.plan.us if step.plan else None,
        idle_us=idle_us(before.forward.end, step.forward.start, busy) if on_gpu else None,
        lead_us=before.forward.end - step.launch if on_gpu else None,
        host_us=step.host.us,
    )


def summary(steps: Sequence[Handover]) -> dict[str, Any]:
    """Medians of planned and other steps after a decode step, and after a prefill.

    `exposed_us` is the idle time before a planned step less that before other steps, after decode
    steps on both sides: what planning costs. `hidden` is the part of planning that costs nothing.
    """
    groups = {
        name: _medians([s for s in steps if (s.plan_us is not None) == planned and test(s)])
        for name, planned, test in (
            ("planned, after a decode step", True, lambda s: s.after in _DECODES),
            ("not planned, after a decode step", False, lambda s: s.after in _DECODES),
            ("planned, after a prefill", True, lambda s: s.after not in _DECODES),
            ("not planned, after a prefill", False, lambda s: s.after not in _DECODES),
        )
    }
    planned, other = list(groups.values())[:2]
    result: dict[str, Any] = {"groups": groups, "exposed_us": None, "hidden": None}
    if None not in (planned["idle_us"], other["idle_us"]):
        exposed = max(0.0, planned["idle_us"] - other["idle_us"])
        result["exposed_us"] = exposed
        result["hidden"] = max(0.0, 1 - exposed / planned["plan_us"])
    return result


def _medians(steps: Sequence[Handover]) -> dict[str, Any]:
    medians: dict[str, Any] = {"steps": len(steps)}
    for name in ("plan_us", "idle_us", "lead_us", "host_us"):
        values = [value for step in steps if (value := getattr(step, name)) is not None]
        medians[name] = statistics.median(values) if values else None
    return medians


def describe(found: dict[str, Any]) -> str:
    """The summary as text."""
    lines = [f"{'steps':<34}{'n':>4}{'plan':>11}{'GPU idle':>11}{'lead':>11}{'host':>11}   (us)"]
    for name, group in found["groups"].items():
        numbers = (group["plan_us"], group["idle_us"], group["lead_us"], group["host_us"])
        cells = ["-" if number is None else f"{number:,.0f}" for number in numbers]
        row = "".join(f"{cell:>11}" for cell in cells)
        lines.append(f"{name:<34}{group['steps']:>4}{row}")
    if found["hidden"] is None:
        lines.append(
            "whether planning is hidden cannot be told: that takes a GPU, and decode steps with"
            " and without a plan after decode steps"
        )
    else:
        verdict = "hidden" if found["hidden"] >= 0.9 else "not hidden"
        lines.append(
            f"planning is {verdict}: the GPU idles {found['exposed_us']:,.0f} us longer before a"
            f" planned step than before others ({found['hidden']:.0%} of the planning is hidden)"
        )
    return "\n".join(lines)
