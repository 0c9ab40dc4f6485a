"""Run `second_layer_probe`: a served model whose second layer is unlike its first."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sglang_versions import SUPPORT, run_python
from warm_python import run_warm

GRAPHS = {
    "graphs": {"cuda_graph_max_bs_decode": 8, "disable_cuda_graph": False},
    "above the captured sizes": {"cuda_graph_max_bs_decode": 2, "disable_cuda_graph": False},
    "eager": {"disable_cuda_graph": True},
}
ON_A_GPU = {"device": "cuda", "dtype": "bfloat16", "mem_fraction_static": 0.2}


def serve(folder: Path, backend: str, settings: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The report of the probe; `more` goes to `run_python`."""
    folder.mkdir(exist_ok=True)
    # on a GPU the kernels are not interpreted, which is decided when Triton is imported
    run = run_warm if "TRITON_INTERPRET" not in more else run_python
    done = run(
        SUPPORT / "second_layer_probe.py",
        str(folder / "model"),
        str(folder / "report.json"),
        backend,
        json.dumps(settings),
        **more,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "report.json").read_text())


def serve_on_a_gpu(
    folder: Path, backend: str, settings: dict[str, Any], prefill: str
) -> dict[str, Any]:
    """`serve` with heads of 128 in bfloat16 and a prefix that is worth a task of its own."""
    heads = {"head_dim": 128, "heads": 8, "kv_heads": 2}
    settings = {"heads": heads, "repeat": 25} | settings
    settings["server"] = ON_A_GPU | settings["server"]
    return serve(folder, backend, settings, **gpu_environment(prefill))


def gpu_environment(prefill: str) -> dict[str, Any]:
    """For `run_python`: compiled kernels on the first GPU, and the caller's SGLang."""
    environment: dict[str, Any] = {n: v for n, v in os.environ.items() if "SGLANG" in n}
    environment |= {"TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": "0"}
    environment["SGLANG_CODEC_PREFILL_BACKEND"] = prefill
    paths = tuple(map(Path, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))))
    return environment | {"paths": paths}


def are_alike(ours: Mapping[str, Sequence[int]], theirs: Mapping[str, Sequence[int]]) -> bool:
    """Whether tokens are nearly all equal: with random weights in bfloat16 two backends may part
    at a near-tie, and stay apart."""
    pairs = [pair for rid, tokens in theirs.items() for pair in zip(tokens, ours[rid], strict=True)]
    return sum(one == other for one, other in pairs) >= 0.8 * len(pairs)
