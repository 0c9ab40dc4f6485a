"""Which attention shapes the kernels have; a property that none honours is never served."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from sglang_codec.attention_shape import AttentionShape

MAX_GROUP = 16
MAX_QUERY_ROWS = 16
MAX_REQUEST_ROWS = 64  # of the largest query tile, which some launch configurations do not have
GPU_HEAD_DIMS = ("64", "80", "96", "128", "192/128", "256")  # of keys and values, if unlike
GPU_DTYPES = ("bfloat16", "float16")
FP8_DTYPES = ("float8_e4m3fn", "float8_e5m2")  # of a KV cache
MIN_INTERPRETED_HEAD_DIM = 16
# tokens: after a shorter window's worth of its own text a row shares nothing that it sees
MIN_WINDOW = 1024


def why_unsupported(shape: AttentionShape, *, interpreted: bool) -> str | None:
    """Why the kernels cannot serve `shape`, with value and limit; None if they can.

    A property without an entry in `_HONOURED` has to have its default value.

    Args:
        interpreted: whether the kernels run in Triton's interpreter.
    """
    for field in dataclasses.fields(shape):
        value = getattr(shape, field.name)
        if judge := _HONOURED.get(field.name):
            if reason := judge(shape, interpreted):
                return reason
        elif value != field.default:
            return f"{field.name} {value}"
    return None


def _heads(shape: AttentionShape, _interpreted: bool) -> str | None:
    heads = f"{shape.num_qo_heads} query heads"
    if shape.num_kv_heads < 1 or shape.num_qo_heads % shape.num_kv_heads:
        return f"{heads} are no multiple of {shape.num_kv_heads} KV heads"
    if not 1 <= shape.group <= MAX_GROUP:
        return (
            f"{heads} over {shape.num_kv_heads} KV heads is a GQA group of {shape.group}, the "
            f"limit is {MAX_GROUP}"
        )
    return None


def _head_dims(shape: AttentionShape, interpreted: bool) -> str | None:
    if interpreted:
        if any(d < MIN_INTERPRETED_HEAD_DIM or d % 8 for d in (shape.key_dim, shape.value_dim)):
            return (
                f"head dim {shape.dims}, the interpreter needs multiples of 8 from "
                f"{MIN_INTERPRETED_HEAD_DIM} up"
            )
    elif shape.dims not in GPU_HEAD_DIMS:
        return f"head dim {shape.dims}, supported are {', '.join(GPU_HEAD_DIMS)}"
    return None


def _dtypes(shape: AttentionShape, interpreted: bool) -> str | None:
    supported = (*GPU_DTYPES, "float32") if interpreted else GPU_DTYPES
    if shape.dtype not in supported:
        return f"dtype {shape.dtype}, supported are {' and '.join(supported)}"
    if shape.kv_dtype not in (shape.dtype, *FP8_DTYPES):
        return (
            f"a KV cache of {shape.kv_dtype} for queries of {shape.dtype}, supported are "
            f"{' and '.join((shape.dtype, *FP8_DTYPES))}"
        )
    return None


def _soft_cap(shape: AttentionShape, _interpreted: bool) -> str | None:
    if shape.soft_cap is not None and not 0 < shape.soft_cap < float("inf"):
        return f"logit cap {shape.soft_cap}, it must be a finite number greater than 0"
    return None


def _window(shape: AttentionShape, _interpreted: bool) -> str | None:
    if shape.window is None or shape.seen_tokens >= MIN_WINDOW:
        return None
    return f"sliding window of {shape.seen_tokens} tokens, codec serves {MIN_WINDOW} and more"


def why_query_rows(shape: AttentionShape, _interpreted: bool) -> str | None:
    """Why so many query rows per request are not served, with this group and window."""
    rows = f"{shape.query_rows} query rows per request"
    if not 1 <= shape.query_rows <= MAX_QUERY_ROWS:
        return f"{rows}, supported are 1 to {MAX_QUERY_ROWS}"
    if reason := shape.why_too_many_rows(MAX_REQUEST_ROWS):
        return reason
    if shape.query_rows > 1 and shape.window is not None:
        return f"{rows} and a sliding window, codec serves one row with windows"
    return None


# properties that the kernels take as they come, within what these functions allow
_HONOURED: dict[str, Callable[[AttentionShape, bool], str | None]] = {
    "num_qo_heads": _heads,
    "num_kv_heads": _heads,
    "key_dim": _head_dims,
    "value_dim": _head_dims,
    "dtype": _dtypes,
    "kv_dtype": _dtypes,
    "soft_cap": _soft_cap,
    "window": _window,
    "query_rows": why_query_rows,
}
