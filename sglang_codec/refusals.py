"""Every start-up refusal; which single layers are left to SGLang is `layer_groups`' matter.

Unsupported input is refused here, before a graph is captured, with the value found, the limit and
the flag to change. `--use-ray` needs no check: its schedulers load no plugins, so SGLang itself
says that `codec` is an invalid attention backend.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from sglang_codec.kernels.fp8 import EXPONENTS
from sglang_codec.settings import setting
from sglang_codec.speculation import why_not_verified

MIN_COMPUTE_CAPABILITY = (8, 0)

_OTHER_BACKEND = "use another --decode-attention-backend"


class UnsupportedConfiguration(ValueError):
    """This server configuration cannot be served by codec."""


def check_supported(model_runner: Any) -> None:
    """Check the whole configuration of a model runner, cheapest first.

    Raises:
        UnsupportedConfiguration: for the first thing that codec does not support.
    """
    for check in _CHECKS:
        if reason := check(model_runner):
            raise UnsupportedConfiguration(f"codec: {reason}")


def _device(runner: Any) -> str | None:
    if runner.device == "cpu":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return None
        return (
            "device cpu runs codec's kernels only in Triton's interpreter; "
            "set TRITON_INTERPRET=1 before the server starts"
        )
    if runner.device != "cuda" or torch.version.hip:
        found = "hip" if torch.version.hip else runner.device
        return f"device {found} is not supported, only NVIDIA GPUs are; {_OTHER_BACKEND}"
    capability = torch.cuda.get_device_capability(runner.gpu_id)
    if capability < MIN_COMPUTE_CAPABILITY:
        return (
            f"{torch.cuda.get_device_name(runner.gpu_id)} has compute capability {capability}, "
            f"codec needs at least {MIN_COMPUTE_CAPABILITY}; {_OTHER_BACKEND}"
        )
    return None


def _mla(runner: Any) -> str | None:
    if runner.use_mla_backend:
        return (
            "the model uses multi-head latent attention (MLA), codec supports only multi-head and "
            "grouped-query attention; choose an MLA backend with --attention-backend"
        )
    return None


def _deterministic(runner: Any) -> str | None:
    if setting(runner, "enable_deterministic_inference"):
        return (
            "deterministic inference is on, and codec's reduction order depends on the batch; "
            f"drop --enable-deterministic-inference or {_OTHER_BACKEND}"
        )
    return None


def _encoder_decoder(runner: Any) -> str | None:
    if getattr(runner.model_config, "is_encoder_decoder", False):
        return (
            "the model is an encoder-decoder with cross attention, codec supports decoder-only "
            f"models; {_OTHER_BACKEND}"
        )
    return None


def _switch(name: str, why: str) -> Callable[[Any], str | None]:
    flag = "--" + name.replace("_", "-")

    def check(runner: Any) -> str | None:
        if setting(runner, name):
            return f"{flag} is set: {why}; drop {flag} or {_OTHER_BACKEND}"
        return None

    return check


def _context_parallel(name: str) -> Callable[[Any], str | None]:
    flag = "--" + name.replace("_", "-")

    def check(runner: Any) -> str | None:
        size = setting(runner, name) or 1
        if size > 1:
            return (
                f"{flag} {size} spreads one request's attention over GPUs, codec needs all of it "
                f"on one ({flag} 1); {_OTHER_BACKEND}"
            )
        return None

    return check


def _glue_graph(runner: Any) -> str | None:
    from sglang.srt.environ import envs

    name = "SGLANG_ENABLE_METADATA_GLUE_GRAPH"
    variable = getattr(envs, name, None)
    if variable is not None and variable.get():
        return f"{name}=1 would record codec's host plan into a graph and freeze it; unset {name}"
    return None


def _kv_pool(runner: Any) -> str | None:
    """Only pools whose slots are known to be rows of one buffer per layer, by their exact class."""
    from sglang.srt.mem_cache.memory_pool import HybridLinearKVPool
    from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

    pool = runner.token_to_kv_pool
    # pools of hybrid models keep the full-attention layers in an inner pool, and those with a
    # window in another
    is_outer = type(pool) in (HybridLinearKVPool, SWAKVPool)
    inner = [pool.full_kv_pool] if is_outer else [pool]
    inner += [pool.swa_kv_pool] if type(pool) is SWAKVPool else []
    return next(filter(None, (_inner_pool(one, pool) for one in inner)), None)


def _inner_pool(inner: Any, pool: Any) -> str | None:
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    if type(inner) is not MHATokenToKVPool:
        name = " in ".join(dict.fromkeys(type(one).__name__ for one in (inner, pool)))
        return f"the KV pool is {name}, codec reads only MHATokenToKVPool; {_OTHER_BACKEND}"
    if getattr(inner, "k_scale_buffer", None) is not None:
        return (
            "the KV pool keeps scales beside K and V, codec knows one scale for all of a layer; "
            f"set --kv-cache-dtype bf16, fp8_e4m3 or fp8_e5m2, or {_OTHER_BACKEND}"
        )
    layout = getattr(inner, "kv_cache_layout", "nhd")
    if layout != "nhd":
        return (
            f"the KV cache layout is {layout}, codec reads nhd; unset SGLANG_USE_HND_KVCACHE "
            f"or {_OTHER_BACKEND}"
        )
    return None


def _kv_dtype(runner: Any) -> str | None:
    model_dtype, kv_dtype = runner.dtype, runner.kv_cache_dtype
    supported = [torch.bfloat16, torch.float16]
    if runner.device == "cpu":
        supported.append(torch.float32)
    names = " or ".join(str(dtype).removeprefix("torch.") for dtype in supported)
    if model_dtype not in supported:
        return f"the model's dtype is {model_dtype}, codec supports {names}; set --dtype"
    if kv_dtype not in (model_dtype, *EXPONENTS):
        return (
            f"the KV cache dtype is {kv_dtype} and the model's {model_dtype}, codec reads KV in "
            # not auto, which follows the checkpoint
            "the model's dtype or in fp8 (e4m3fn, e5m2); set --kv-cache-dtype bf16, fp8_e4m3 or "
            f"fp8_e5m2, or {_OTHER_BACKEND}"
        )
    return None


_CHECKS: tuple[Callable[[Any], str | None], ...] = (
    _device,
    _mla,
    why_not_verified,
    _deterministic,
    _encoder_decoder,
    _context_parallel("dcp_size"),
    _context_parallel("attn_cp_size"),
    _switch("enable_two_batch_overlap", "child batches lose what the tree proves"),
    _switch("enable_unified_memory", "its KV slots are virtual, codec reads real ones"),
    _switch("enable_pdmux", "it runs several decode backends on parts of the GPU"),
    _switch("enable_torch_compile", "torch.compile would trace into codec's kernel launches"),
    _switch("enable_nvidia_megakernel", "its fused steps take the place of the attention backend"),
    _glue_graph,
    _kv_dtype,
    _kv_pool,
)
