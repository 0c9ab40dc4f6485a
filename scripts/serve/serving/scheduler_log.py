"""What SGLang's scheduler logs of its decode steps: a check on what the client sees."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass

_LINE = re.compile(
    r"Decode batch.*?#running-req: (?P<running>\d+),.*?"
    r"(?:accept len: (?P<accepted>[\d.]+), .*?)?"
    r"(?:\w+ graph: (?P<graph>\w+), )?"
    r"gen throughput \(token/s\): (?P<tokens>[\d.]+)"
)


@dataclass(frozen=True, slots=True)
class Logged:
    """Decode steps of one batch size in a log.

    Args:
        tpot_ms: running requests over logged tokens per second, mean of the lines.
        lines: lines that this is the mean of, each of equally many steps.
        cuda_graph: whether all of these steps ran as CUDA graphs; None if the log does not say.
    """

    tpot_ms: float
    lines: int
    cuda_graph: bool | None


def read_log(text: str, batch: int) -> Logged | None:
    """What the log says of steps with `batch` running requests; None if it says too little.

    The first such line also covers the prefill before it and does not count.
    """
    found = [match for match in _LINE.finditer(text) if int(match["running"]) == batch]
    steady = [float(match["tokens"]) for match in found[1:] if float(match["tokens"]) > 0]
    if not steady:
        return None
    graphs = {match["graph"] for match in found if match["graph"]}
    return Logged(
        tpot_ms=1e3 * statistics.fmean(batch / tokens for tokens in steady),
        lines=len(steady),
        cuda_graph=graphs == {"True"} if graphs else None,
    )


def accept_length(text: str) -> float | None:
    """Tokens that a verify step yields a request, mean of the lines; None without speculation."""
    found = [float(match["accepted"]) for match in _LINE.finditer(text) if match["accepted"]]
    return statistics.fmean(found) if found else None


@dataclass(frozen=True, slots=True)
class LoggedArrivals:
    """Decode steps of batches of all sizes in a log.

    Args:
        tpot_ms: what a request waits for a token in the mean, prefills between steps included:
            running requests over logged tokens per second, weighted with the running requests.
        largest: running requests of the largest batch that was logged.
        graphs: part of the lines whose step ran as a CUDA graph; None if the log does not say.
    """

    tpot_ms: float
    largest: int
    graphs: float | None


# of the benchmark's own first request and of the pause after it
_BEFORE_ARRIVALS = 2


def read_arrivals(text: str) -> LoggedArrivals | None:
    """What the log says of requests that come and go; None if it says too little."""
    found = [match for match in _LINE.finditer(text) if float(match["tokens"]) > 0]
    found = found[_BEFORE_ARRIVALS:]
    if not found:
        return None
    running = [int(match["running"]) for match in found]
    pairs = zip(running, found, strict=True)
    waited = sum(batch * batch / float(match["tokens"]) for batch, match in pairs)
    graphs = [match["graph"] == "True" for match in found if match["graph"]]
    return LoggedArrivals(
        tpot_ms=1e3 * waited / sum(running),
        largest=max(running),
        graphs=statistics.fmean(graphs) if graphs else None,
    )
