"""What SGLang needs to serve on a machine without a GPU, our kernels in Triton's interpreter."""

from __future__ import annotations

import os


def is_interpreted_cpu_host() -> bool:
    """True if kernels are to run in Triton's interpreter and there is no GPU."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return False
    import torch

    return not torch.cuda.is_available()


def prepare_cpu_host() -> bool:
    """Make SGLang run without a GPU if this is such a machine; idempotent; says if it is.

    Why: without CUDA and without SGLang's own CPU engine, `RotaryEmbedding` imports vLLM for a
    rotary kernel. The module flag only means that no such kernel is wanted. SGLang's Triton helper
    kernels need nothing: they run interpreted.
    Upstream: `rotary_embedding/base.py` reads the flag when a layer is built, before any attention
    backend exists, so this is called at entry-point time.
    Remove when: `RotaryEmbedding` runs natively where no kernel is available.
    """
    if not is_interpreted_cpu_host():
        return False
    from sglang.srt.layers.rotary_embedding import base

    if not hasattr(base, "_is_cpu"):
        raise RuntimeError(f"{base.__name__} has no _is_cpu: codec cannot run this SGLang on a CPU")
    base._is_cpu = True
    from sglang_codec.patches.interpreter_speed import hasten_interpreter

    hasten_interpreter()
    return True
