"""The time per step that SGLang's scheduler logs: a check on what the client sees."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass

_LINE = re.compile(
    r"Decode batch.*?#running-req: (?P<running>\d+),.*?"
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
