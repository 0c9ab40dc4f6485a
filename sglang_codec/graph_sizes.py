"""Up to which batch size a server decodes by replaying a CUDA graph, and what larger ones cost."""

from __future__ import annotations

import logging
from typing import Any

from sglang_codec.settings import setting

logger = logging.getLogger(__name__)


class OutgrownGraphs:
    """Says once that more requests decode than the largest graph holds, and what changes it.

    Args:
        largest: requests of the largest decode graph; 0 for none, which is said at start-up.
    """

    def __init__(self, largest: int) -> None:
        self.largest, self._is_said = largest, False

    def look(self, requests: int) -> None:
        """At a step that no graph is replayed for."""
        if self._is_said or not 0 < self.largest < requests:
            return
        self._is_said = True
        logger.warning(
            "codec: %d requests decode at once, and the largest CUDA graph holds %d. Larger steps "
            "wait for the host, which makes them several times as long, whatever attention takes. "
            "Pass --cuda-graph-max-bs-decode %d, or --max-running-requests %d to run no more.",
            requests,
            self.largest,
            1 << (requests - 1).bit_length(),
            self.largest,
        )


def largest_decode_graph(model_runner: Any) -> int:
    """Rows of the largest decode graph that SGLang will capture, 0 if it captures none."""
    config = setting(model_runner, "cuda_graph_config")
    if config is None or config.decode.backend == "disabled":
        return 0
    # SGLang captures no batch that is larger than its table of requests
    return min(max(config.decode.bs or [0]), model_runner.req_to_token_pool.size)


def decode_graphs(model_runner: Any) -> str:
    """Which decode steps are eager, that is slowed down by the host, and what changes it."""
    largest, most = largest_decode_graph(model_runner), model_runner.req_to_token_pool.size
    if largest == 0:
        return "all decode steps are eager (CUDA graphs are off, see --disable-cuda-graph)"
    if largest >= most:
        return f"decode graphs for all batches (up to {most} requests)"
    return (
        f"decode graphs up to {largest} requests: from {largest + 1} on, of the {most} that may "
        f"run, steps are eager; --cuda-graph-max-bs-decode {most} captures all"
    )
