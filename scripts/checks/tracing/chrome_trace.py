"""The decode steps of a scheduler's profile: what the host did, and what ran on the GPU.

SGLang (0.5.17 to 0.5.23) marks in every torch profile its forward passes as `step[DECODE bs=64]`
and `step[EXTEND bs=1 toks=9]`, and the parts of the scheduler's loop as `scheduler.run_batch` and
so on. Device work belongs to the step during whose time on the host it was launched; the profiler
joins the two by a correlation number, and all kernels of a CUDA graph have that of its launch.

Planning is what the ranges `codec.plan` and `codec.upload` hold.
"""

from __future__ import annotations

import gzip
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STEP = re.compile(r"step\[(\w+)")
_PLAN_RANGES = ("codec.plan", "codec.upload")
_GRAPH_LAUNCHES = ("cudaGraphLaunch", "hipGraphLaunch")
_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHING = ("cuda_runtime", "cuda_driver")


@dataclass(frozen=True, slots=True)
class Span:
    """A time from start to end, in microseconds since the profile began."""

    name: str
    start: float
    end: float

    @property
    def us(self) -> float:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Step:
    """A forward pass.

    Args:
        host: its range on the host.
        plan: planning and upload, None if this step made no plan.
        launch: when the host launched the CUDA graph, or else the first kernel; None without GPU.
        device: all that it ran on the GPU, merged where it touches.
        forward: from the first to the last kernel of the graph, or else of the range.
    """

    kind: str
    host: Span
    plan: Span | None
    launch: float | None
    device: tuple[Span, ...]
    forward: Span | None


@dataclass(frozen=True, slots=True)
class Profile:
    """Steps in order, and the ranges of the scheduler's loop; `gpu` is `cpu` without one."""

    gpu: str
    steps: tuple[Step, ...]
    scheduler: tuple[Span, ...]


class NoSteps(ValueError):
    """The file is no profile of SGLang's scheduler."""


def read_profile(path: Path) -> Profile:
    """Read a Chrome trace as torch writes it, packed or not."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as file:
        return profile_of(json.load(file))


def profile_of(trace: dict[str, Any]) -> Profile:
    """The steps of a trace.

    Raises:
        NoSteps: if there are none.
    """
    timed = [e for e in trace["traceEvents"] if e.get("ph") == "X" and "ts" in e]
    zero = min((event["ts"] for event in timed), default=0.0)
    ranges = [event for event in timed if event.get("cat") == "user_annotation"]
    hosts = [_span(event, zero) for event in ranges if _STEP.match(event["name"])]
    hosts.sort(key=lambda span: span.start)
    if not hosts:
        raise NoSteps("no range named step[...] in this trace: is it of SGLang's scheduler?")
    device = _device_work(timed, zero, [host.start for host in hosts])
    plans = _plans([_span(e, zero) for e in ranges if e["name"] in _PLAN_RANGES], hosts)
    steps = tuple(_step(host, plans.get(i), device.get(i, [])) for i, host in enumerate(hosts))
    loop = [_span(event, zero) for event in ranges if event["name"].startswith("scheduler.")]
    gpu = next((device["name"] for device in trace.get("deviceProperties") or []), "cpu")
    return Profile(gpu, steps, tuple(sorted(loop, key=lambda span: span.start)))


def merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same time in spans that do not overlap or touch."""
    result: list[Span] = []
    for span in sorted(spans, key=lambda span: span.start):
        if result and span.start <= result[-1].end:
            last = result[-1]
            result[-1] = Span(last.name, last.start, max(last.end, span.end))
        else:
            result.append(span)
    return tuple(result)


@dataclass(frozen=True, slots=True)
class _Launch:
    name: str
    at: float


@dataclass(frozen=True, slots=True)
class _Work:
    launch: _Launch
    span: Span


def _span(event: dict[str, Any], zero: float) -> Span:
    start = event["ts"] - zero
    return Span(event["name"], start, start + event.get("dur", 0.0))


def _correlation(event: dict[str, Any]) -> int | None:
    return event.get("args", {}).get("correlation")


def _device_work(
    timed: Sequence[dict[str, Any]], zero: float, starts: Sequence[float]
) -> dict[int, list[_Work]]:
    """Device work by the number of the step in whose time it was launched."""
    launches = {
        _correlation(event): _Launch(event["name"], event["ts"] - zero)
        for event in timed
        if event.get("cat") in _LAUNCHING and _correlation(event) is not None
    }
    work: dict[int, list[_Work]] = {}
    for event in timed:
        launch = launches.get(_correlation(event))
        if event.get("cat") in _DEVICE and launch is not None:
            step = bisect_right(starts, launch.at) - 1
            work.setdefault(step, []).append(_Work(launch, _span(event, zero)))
    return work


def _step(host: Span, plan: Span | None, work: list[_Work]) -> Step:
    graphs = [w for w in work if w.launch.name in _GRAPH_LAUNCHES and w.launch.at <= host.end]
    forward = graphs or [w for w in work if w.launch.at <= host.end]
    return Step(
        kind=_STEP.match(host.name).group(1),
        host=host,
        plan=plan,
        launch=min((w.launch.at for w in forward), default=None),
        device=merged(w.span for w in work),
        forward=_cover("forward", [w.span for w in forward]),
    )


def _cover(name: str, spans: Sequence[Span]) -> Span | None:
    if not spans:
        return None
    return Span(name, min(span.start for span in spans), max(span.end for span in spans))


def _plans(spans: Sequence[Span], hosts: Sequence[Span]) -> dict[int, Span]:
    """Planning and upload by step number."""
    ends = [host.end for host in hosts]
    found: dict[int, list[Span]] = {}
    for span in spans:
        # what ends after the last step belongs to none
        step = bisect_right(ends, span.start)
        if step < len(hosts):
            found.setdefault(step, []).append(span)
    return {step: _cover("plan", parts) for step, parts in found.items()}
