"""A bundle with a NaN in it, once more: token by token from global memory."""

from __future__ import annotations

import math

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from sglang_codec.kernels.fp8 import widened
from sglang_codec.kernels.hopper.rows import (
    ROWS,
    copied_columns,
    held_by,
    product_layout,
)
from sglang_codec.kernels.hopper.walk import batch_rows, tile_rows
from sglang_codec.kernels.query_rows import reader_of, token_row
from sglang_codec.kernels.results import scaled, sinks_of
from sglang_codec.kernels.softmax import capped, join_sink


@gluon.constexpr_function
def columns_at_once(key_dim, value_dim):
    """Of keys, and of the output: a divisor of both widths, and not too many for the registers."""
    return math.gcd(32, key_dim, value_dim)


@gluon.jit
def repair(given, task, kv_head, lse, VARIANT: gl.constexpr):
    """Compute and store a bundle's output without matrix products, some columns at a time.

    Few registers, because what lives throughout the kernel would be spilled here otherwise.
    """
    KEY_DIM: gl.constexpr = VARIANT.KEY_DIM
    VALUE_DIM: gl.constexpr = VARIANT.VALUE_DIM
    COPIED: gl.constexpr = copied_columns(KEY_DIM, VARIANT.VALUE_COLUMNS)
    COLUMNS: gl.constexpr = columns_at_once(KEY_DIM, VALUE_DIM)
    dtype: gl.constexpr = given.q_ptr.dtype.element_ty
    layout: gl.constexpr = product_layout(COLUMNS)
    rows: gl.constexpr = gl.SliceLayout(1, layout)
    tile_row = held_by(gl.arange(0, ROWS, rows), COPIED, ROWS)
    column = gl.arange(0, COLUMNS, gl.SliceLayout(0, layout))
    query, head, valid = tile_rows(task, tile_row, kv_head, VARIANT)
    reader = reader_of(tile_row, VARIANT)
    row = token_row(batch_rows(given, task, tile_row, VARIANT).to(gl.int64), tile_row, VARIANT)
    lse = gl.convert_layout(lse, rows)
    if given.sinks_ptr is not None:
        _, joined = join_sink(lse, sinks_of(given, head))
        lse = gl.where(task.part < 0, joined, lse)
    lse = gl.where(lse == -float("inf"), 0.0, lse)
    q_rows = given.q_ptr + row * given.q_row_stride + head * given.q_head_stride
    k_head_ptr = given.k_ptr + kv_head.to(gl.int64) * given.k_head_stride
    v_head_ptr = given.v_ptr + kv_head.to(gl.int64) * given.v_head_stride
    for begin in range(0, VALUE_DIM, COLUMNS):
        values = gl.zeros([ROWS, COLUMNS], gl.float32, layout)
        for own in range(task.kv_start, task.kv_start + task.kv_len):
            at = gl.load(given.bundle_index_ptr + own).to(gl.int64)
            readers = gl.load(given.bundle_readers_ptr + own)
            is_seen = (reader >= (readers & 0xFFFF)) & (reader < (readers >> 16))
            score = gl.zeros([ROWS], gl.float32, rows)
            for of_key in range(0, KEY_DIM, COLUMNS):
                q = gl.load(
                    q_rows[:, None] + (of_key + column)[None, :], mask=valid[:, None], other=0.0
                )
                k = gl.load(k_head_ptr + at * given.k_slot_stride + of_key + column)
                q = q.to(gl.float32)
                k = widened(k, gl.float32, VARIANT.EXPONENT).to(gl.float32)
                score += gl.sum(q * k[None, :], 1)
            weight = gl.exp2(capped(score, given) * given.qk_scale - lse)
            v = gl.load(v_head_ptr + at * given.v_slot_stride + begin + column)
            v = widened(v, gl.float32, VARIANT.EXPONENT).to(gl.float32)
            values += gl.where(is_seen[:, None], weight[:, None] * v[None, :], 0.0)
        values = scaled(values, given)
        if task.part < 0:
            out_rows = given.out_ptr + row * given.out_row_stride + head * given.out_head_stride
            out_rows = out_rows + begin
            gl.store(out_rows[:, None] + column[None, :], values.to(dtype), mask=valid[:, None])
        else:
            part = token_row(task.part + query, tile_row, VARIANT)
            partial = part.to(gl.int64) * given.num_qo_heads + head
            partial_rows = given.partial_out_ptr + partial * VALUE_DIM + begin
            gl.store(partial_rows[:, None] + column[None, :], values, mask=valid[:, None])
