"""What engines and servers are started with: the attention backend, and what suits the machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def backend_arguments(backend: str) -> dict[str, str]:
    """Arguments of SGLang for `codec`, or for `fa3/codec`: one prefills and one decodes."""
    prefill, _, decode = backend.partition("/")
    if decode:
        return {"prefill_attention_backend": prefill, "decode_attention_backend": decode}
    return {"attention_backend": backend}


def uses_codec(backend: str) -> bool:
    """True if `codec` decodes."""
    return backend.split("/")[-1] == "codec"


def has_gpu() -> bool:
    """True if torch can use a CUDA device."""
    import torch

    # counts without touching CUDA, which processes that are forked from here could not use then
    return torch.cuda.device_count() > 0


def gpu_name() -> str:
    """The first GPU's name, `cpu` without one."""
    import torch

    return torch.cuda.get_device_name() if has_gpu() else "cpu"


def machine_arguments(*, gpu: bool) -> dict[str, Any]:
    """What the machine asks for: nothing on a GPU, where SGLang's defaults are what users have."""
    if gpu:
        return {}
    # fp32, and a KV pool that is not sized from the memory
    return {
        "device": "cpu",
        "dtype": "float32",
        "max_total_tokens": 8192,
        "max_running_requests": 16,
        "context_length": 2048,
        "disable_cuda_graph": True,
    }


def as_flags(arguments: dict[str, Any]) -> list[str]:
    """The same on a server's command line."""
    names = {name: f"--{name.replace('_', '-')}" for name in arguments}
    return [
        names[name] if value is True else f"{names[name]}={value}"
        for name, value in arguments.items()
    ]


def prepare_environment(model: str, *, gpu: bool) -> None:
    """Variables that SGLang's processes inherit; set by the user, they stay as they are."""
    if Path(model).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not gpu:
        os.environ.setdefault("TRITON_INTERPRET", "1")
