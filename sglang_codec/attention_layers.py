"""A model's attention layers, and what must be known of one before the kernels may serve it.

SGLang's backends read settings of a layer that change its mathematics (windows, caps, chunks). So
a layer is served only if everything it carries is listed here with a value under which plain
causal attention is right; any other layer goes to SGLang's own backend, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from sglang_codec.kernels.fp8 import EXPONENTS
from sglang_codec.window_slots import in_window_pool

_MODULE_STATE = frozenset(vars(torch.nn.Module()))


def attention_layers(model: torch.nn.Module) -> Iterator[Any]:
    """The model's `RadixAttention` layers, also those kept in plain lists and dicts of a module."""
    from sglang.srt.layers.radix_attention import RadixAttention

    return (module for module in _all_modules(model) if isinstance(module, RadixAttention))


def why_unknown(layer: Any, model_runner: Any) -> str | None:
    """What a layer carries that codec does not know, or where its KV lies; None if it knows all."""
    why = _why_unknown_value(layer) or _why_windowed(layer, model_runner)
    return why or _why_unscaled(layer, model_runner)


def scales_of(layer: Any) -> tuple[float | None, float | None]:
    """What SGLang divides a layer's K and V by when it stores them as fp8; None for 1.

    Loading weights may change them; a captured graph keeps those that it was captured with, as in
    SGLang's `flashinfer` and `triton`, and the backend counts the steps in which they differ.
    """
    k_scale, v_scale = layer.k_scale_float, layer.v_scale_float
    # a file of scales (`--quantization-param-path`) sets these alone, to plain numbers
    return (
        layer.k_scale if k_scale is None else k_scale,
        layer.v_scale if v_scale is None else v_scale,
    )


def is_off(value: Any) -> bool:
    """True for the values that switch a setting off, whatever it means: None, False, 0, empty."""
    return value is None or (isinstance(value, bool | int | float | str) and not value)


def _all_modules(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    seen: set[int] = set()
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield module
        for value in vars(module).values():
            inner = value.values() if isinstance(value, dict) else value
            if isinstance(value, dict | list | tuple):
                waiting += [one for one in reversed(list(inner)) if _is_module(one)]


def _is_module(value: Any) -> bool:
    return isinstance(value, torch.nn.Module)


def _why_unknown_value(layer: Any) -> str | None:
    from sglang.srt.layers.radix_attention import RadixAttention

    if type(layer) is not RadixAttention:
        return f"class {type(layer).__name__}"
    for name, value in _carried(layer):
        if name not in _KNOWN:
            if not is_off(value):
                return f"attribute {name}"
        elif not _KNOWN[name](value):
            return _WORDS.get(name, "{name} {value}").format(name=name, value=value)
    if layer.tp_v_head_num != layer.tp_k_head_num:
        return f"{layer.tp_v_head_num} value heads for {layer.tp_k_head_num} key heads"
    return None


def _carried(layer: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """What a layer has beyond an empty module: attributes, parameters, buffers and submodules."""
    for name, value in vars(layer).items():
        if name not in _MODULE_STATE:
            yield name, value
    for group in (layer._parameters, layer._buffers, layer._modules):
        yield from group.items()


def _why_windowed(layer: Any, model_runner: Any) -> str | None:
    """Layers that see only a part of the sequence without saying so themselves."""
    config, pool = model_runner.model_config, model_runner.token_to_kv_pool
    local = getattr(config, "is_local_attention_model", False)
    # use_irope alone says nothing: Muse Spark sets it without chunks
    if layer.use_irope and (local or getattr(config, "attention_chunk_size", None)):
        return "chunked attention"
    says_so = layer.sliding_window_size is not None and layer.sliding_window_size > -1
    if in_window_pool(pool, layer.layer_id):
        if not says_so:
            return "KV in the sliding-window pool, but no window"
        if getattr(pool, "full_to_swa_index_mapping", None) is None:
            return "KV in a sliding-window pool without a mapping of its slots"
    elif says_so and layer.layer_id in getattr(pool, "layers_mapping", {}):
        return "a sliding window over KV in the pool of the full layers"
    if says_so:
        return None  # a part of its shape
    # from 0.5.21 on the ids are the runner's, before that the model configuration's
    for owner in (getattr(model_runner, "layer_info", None), config):
        if layer.layer_id in (getattr(owner, "swa_attention_layer_ids", None) or ()):
            return "sliding-window layer"
    return None


def _why_unscaled(layer: Any, model_runner: Any) -> str | None:
    """Scales of an fp8 cache that are not one number, known to the host, for all of a layer."""
    if model_runner.kv_cache_dtype not in EXPONENTS:
        return None
    for name, scale in zip(("k_scale", "v_scale"), scales_of(layer), strict=True):
        if isinstance(scale, torch.Tensor):
            return f"{name} on the device only"
        if scale is not None and not 0 < scale < float("inf"):
            return f"{name} {scale}, it must be a finite number greater than 0"
    return None


def _any(_value: Any) -> bool:
    return True


def _is_kv_scale_method(value: Any) -> bool:
    # it only loads k_scale and v_scale, which are without effect on an unquantised KV cache
    from sglang.srt.layers.quantization.kv_cache import BaseKVCacheMethod

    return value is None or isinstance(value, BaseKVCacheMethod)


def _is_causal(value: Any) -> bool:
    from sglang.srt.layers.radix_attention import AttentionType

    return value == AttentionType.DECODER


# every attribute that `RadixAttention` has in SGLang 0.5.17 to 0.5.23
_KNOWN: dict[str, Callable[[Any], bool]] = {
    "layer_id": _any,
    "tp_q_head_num": _any,
    "tp_k_head_num": _any,
    "tp_v_head_num": _any,
    "head_dim": _any,
    "qk_head_dim": _any,
    "v_head_dim": _any,
    "scaling": _any,
    "is_cross_attention": is_off,
    # of the layer's shape, which `shape_support` judges
    "sliding_window_size": _any,
    "logit_cap": _any,
    "logit_capping_method": lambda method: method == "tanh",
    "xai_temperature_len": lambda length: length is None or length <= 0,
    "attn_type": _is_causal,
    "pos_encoding_mode": lambda mode: mode == "NONE",
    # chunks only in models with local attention: `_why_windowed` looks at both
    "use_irope": _any,
    "use_prefill_attention_wrapper": _any,
    "quant_method": _is_kv_scale_method,
    "k_scale": _any,
    "v_scale": _any,
    "k_scale_float": _any,
    "v_scale_float": _any,
    "q_scale_float": is_off,
    "idx_q_scale_float": is_off,
    "idx_k_scale_float": is_off,
    "idx_v_scale_float": is_off,
    # Transformers' mark on modules whose weights it has set
    "_is_hf_initialized": _any,
}
_WORDS = {
    "is_cross_attention": "cross attention",
    "xai_temperature_len": "xai temperature over {value} tokens",
}
