"""Figures of requests that decode together, from the arrival of their chunks.

The steady state is the time in which all requests decode: from the moment the last of them has
its first token until the first of them has its last.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from library.servers.clients import Completion

LEAST_STEPS = 4


class NotSteady(ValueError):
    """The requests never decoded all together, or too briefly to measure."""


@dataclass(frozen=True, slots=True)
class Steady:
    """What the steady state of a batch shows; times in milliseconds.

    Args:
        steps: tokens of a request within the steady state, the fewest of all.
        tokens_before: tokens that a request had, in the mean, when the steady state began.
        tokens_after: the same for its end.
    """

    tpot_ms: float
    itl_ms: dict[str, float]
    steps: int
    tokens_before: float
    tokens_after: float


def p50_p99(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile in milliseconds."""
    return {f"p{p}": 1e3 * float(np.percentile(seconds, p)) for p in (50, 99)}


def steady_state(completions: Sequence[Completion]) -> Steady:
    """TPOT is the mean over requests of (last - first arrival) / tokens between, within the window.

    A chunk of several tokens counts as so many gaps of equal length, as in SGLang's benchmark.

    Raises:
        NotSteady: if there is no such time.
    """
    start = max(completion.arrivals[0][0] for completion in completions)
    end = min(completion.arrivals[-1][0] for completion in completions)
    inside = [
        [(at, new) for at, new in completion.arrivals if start <= at <= end]
        for completion in completions
    ]
    # the first chunk inside only says when to start counting
    tokens = [sum(new for _, new in chunks[1:]) for chunks in inside]
    if end <= start or min(tokens) < LEAST_STEPS:
        raise NotSteady(
            f"all {len(completions)} requests decoded together for only {max(0, min(tokens))}"
            " steps: raise --steps, or the server's --max-running-requests and memory"
        )
    spans = [chunks[-1][0] - chunks[0][0] for chunks in inside]
    gaps = [
        gap
        for chunks in inside
        for (before, _), (at, new) in pairwise(chunks)
        for gap in [(at - before) / new] * new
    ]
    before = [
        sum(new for at, new in completion.arrivals if at <= chunks[0][0])
        for completion, chunks in zip(completions, inside, strict=True)
    ]
    return Steady(
        tpot_ms=1e3 * statistics.fmean(s / n for s, n in zip(spans, tokens, strict=True)),
        itl_ms=p50_p99(gaps),
        steps=min(tokens),
        tokens_before=statistics.fmean(before),
        tokens_after=statistics.fmean(b + n for b, n in zip(before, tokens, strict=True)),
    )


def latencies(completions: Sequence[Completion]) -> dict[str, Any]:
    """First-token times, and throughput from sending to the last token."""
    wall_s = max(completion.last_token_s for completion in completions)
    output = sum(len(completion.output_ids) for completion in completions)
    return {
        "ttft_ms": p50_p99([completion.first_token_s for completion in completions]),
        "output_tokens": output,
        "wall_s": wall_s,
        "tokens_per_s": output / wall_s,
    }
