"""A bundle with a NaN in it, once more."""

from __future__ import annotations

import triton
import triton.language as tl

from sglang_codec.kernels.columns import of_width
from sglang_codec.kernels.fp8 import widened
from sglang_codec.kernels.portable.products import add_values
from sglang_codec.kernels.softmax import capped


@triton.jit
def attend_alone(
    given,
    q,
    k_head_ptr,
    v_head_ptr,
    index,
    readers_of,
    kv_len,
    own,
    reference,
    VARIANT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_KV: tl.constexpr,
):
    """Weighted values of query `own` of a bundle, ``[ROWS, Dv]``, from the tokens it sees only."""
    COLUMNS: tl.constexpr = VARIANT.VALUE_COLUMNS
    key_column = tl.arange(0, VARIANT.KEY_COLUMNS)
    value_column = tl.arange(0, COLUMNS)
    token = tl.arange(0, BLOCK_KV)
    alone = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in tl.range(0, kv_len, BLOCK_KV, num_stages=1):
        within = start + token < kv_len
        readers = tl.load(readers_of + start + token, mask=within, other=0)
        is_own = ((readers & 0xFFFF) <= own) & (own < (readers >> 16))
        at = tl.load(index + start + token, mask=is_own, other=0).to(tl.int64)
        k = tl.load(
            k_head_ptr + at[:, None] * given.k_slot_stride + key_column[None, :],
            mask=of_width(is_own[:, None], key_column[None, :], VARIANT.KEY_DIM),
            other=0.0,
        )
        v = tl.load(
            v_head_ptr + at[:, None] * given.v_slot_stride + value_column[None, :],
            mask=of_width(is_own[:, None], value_column[None, :], VARIANT.VALUE_DIM),
            other=0.0,
        )
        k = widened(k, q.dtype, VARIANT.EXPONENT)
        v = widened(v, q.dtype, VARIANT.EXPONENT)
        scores = capped(tl.dot(q, tl.trans(k), input_precision="ieee"), given) * given.qk_scale
        scores = tl.where(is_own[None, :], scores, -float("inf"))
        weights = tl.exp2(scores - reference[:, None])
        alone = add_values(alone, weights, v, VARIANT.EXACT_WEIGHTS)
    return alone
