"""Up to which batch size a server decodes by replaying a CUDA graph, for the start-up line."""

from __future__ import annotations

from typing import Any

from sglang_codec.settings import setting


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
