"""One task: its query rows, the loop over its KV steps, and where its result goes."""

from __future__ import annotations

import triton
import triton.language as tl

from sglang_codec.kernels.columns import of_width
from sglang_codec.kernels.fp8 import widened
from sglang_codec.kernels.portable.bundle_repair import attend_alone
from sglang_codec.kernels.portable.products import add_values
from sglang_codec.kernels.query_rows import head_of, reader_of, seen_end, token_row
from sglang_codec.kernels.records import TASK_INTS
from sglang_codec.kernels.results import scaled, sinks_of, store_partials, store_rows
from sglang_codec.kernels.softmax import capped, softmax_step


@triton.jit
def attend(
    given,
    task,
    kv_head,
    VARIANT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    IS_BUNDLE: tl.constexpr,
):
    """Attention of one query tile over one KV chunk, or one bundle, for one KV head."""
    GROUP: tl.constexpr = VARIANT.GROUP
    COLUMNS: tl.constexpr = VARIANT.VALUE_COLUMNS
    record = given.plan_ptr + given.tasks_offset + task * TASK_INTS
    kv_start = tl.load(record)
    kv_len = tl.load(record + 1)
    first = tl.load(record + 2)
    queries = tl.load(record + 3)
    part = tl.load(record + 4)

    offs_row = tl.arange(0, ROWS)
    key_column = tl.arange(0, VARIANT.KEY_COLUMNS)
    value_column = tl.arange(0, COLUMNS)
    token = tl.arange(0, BLOCK_KV)
    query = offs_row // GROUP
    head = head_of(offs_row, kv_head, VARIANT)
    valid = query < queries
    order = given.plan_ptr + given.order_offset + first + query
    request = tl.load(order, mask=valid, other=0).to(tl.int64)
    row = token_row(request, offs_row, VARIANT)
    q_rows = given.q_ptr + row[:, None] * given.q_row_stride + head[:, None] * given.q_head_stride
    q_mask = of_width(valid[:, None], key_column[None, :], VARIANT.KEY_DIM)
    q = tl.load(q_rows + key_column[None, :], mask=q_mask, other=0.0)
    k_head_ptr = given.k_ptr + kv_head.to(tl.int64) * given.k_head_stride
    v_head_ptr = given.v_ptr + kv_head.to(tl.int64) * given.v_head_stride
    index = (given.bundle_index_ptr if IS_BUNDLE else given.kv_index_ptr) + kv_start
    readers_of = given.bundle_readers_ptr + kv_start

    running_max = tl.full([ROWS], -float("inf"), tl.float32)
    running_sum = tl.zeros([ROWS], tl.float32)
    accumulator = tl.zeros([ROWS, COLUMNS], tl.float32)
    IS_WINDOWED: tl.constexpr = VARIANT.WINDOW > 0 and not IS_BUNDLE
    if IS_WINDOWED:
        # the first token that each row sees, counted from the chunk's own
        lengths = tl.load(given.row_lengths_ptr + request, mask=valid, other=0)
        edge = lengths - VARIANT.WINDOW - tl.load(record + 6)
    HAS_ENDS: tl.constexpr = VARIANT.QUERY_ROWS > 1 and not IS_BUNDLE
    if HAS_ENDS:
        # of a tail each query row sees as far as its own token; all see the whole of other chunks
        owner = tl.load(record + 5)
        tokens = tl.load(given.row_lengths_ptr + owner, mask=owner >= 0, other=2147483647)
        seen_to = seen_end(tokens - tl.load(record + 6), offs_row, kv_len, VARIANT)
    MAY_BE_UNSEEN: tl.constexpr = IS_BUNDLE or IS_WINDOWED or HAS_ENDS
    # the slots of a step are loaded a step ahead, into registers: K and V then wait for nothing in
    # their own step, and the compiler can load them `num_stages - 1` steps ahead. An explicit
    # number of stages on the loop would make it pipeline the slots too, and wait for all of them.
    slot = tl.load(index + token, mask=token < kv_len, other=0)
    if IS_BUNDLE:
        reader = reader_of(offs_row, VARIANT)
        readers = tl.load(readers_of + token, mask=token < kv_len, other=0)
    for start in tl.range(0, kv_len, BLOCK_KV):
        within = start + token < kv_len
        at = slot.to(tl.int64)
        # beyond the end nothing is loaded: zeros, so a weight of zero never meets a NaN
        k = tl.load(
            k_head_ptr + at[:, None] * given.k_slot_stride + key_column[None, :],
            mask=of_width(within[:, None], key_column[None, :], VARIANT.KEY_DIM),
            other=0.0,
        )
        v = tl.load(
            v_head_ptr + at[:, None] * given.v_slot_stride + value_column[None, :],
            mask=of_width(within[:, None], value_column[None, :], VARIANT.VALUE_DIM),
            other=0.0,
        )
        k = widened(k, q.dtype, VARIANT.EXPONENT)
        v = widened(v, q.dtype, VARIANT.EXPONENT)
        following = start + BLOCK_KV + token
        slot = tl.load(index + following, mask=following < kv_len, other=0)
        scores = capped(tl.dot(q, tl.trans(k), input_precision="ieee"), given)
        if IS_BUNDLE:
            low = readers & 0xFFFF
            high = readers >> 16
            seen = (reader[:, None] >= low[None, :]) & (reader[:, None] < high[None, :])
            scores = tl.where(seen, scores, -float("inf"))
            readers = tl.load(readers_of + following, mask=following < kv_len, other=0)
        elif IS_WINDOWED:
            seen = within[None, :] & ((start + token)[None, :] >= edge[:, None])
            scores = tl.where(seen, scores, -float("inf"))
        elif HAS_ENDS:
            seen = (start + token)[None, :] < seen_to[:, None]
            scores = tl.where(seen, scores, -float("inf"))
        else:
            scores = tl.where(within[None, :], scores, -float("inf"))
        weights, rescale, running_max = softmax_step(
            scores, tl.max(scores, 1), running_max, given.qk_scale, MAY_BE_UNSEEN
        )
        running_sum = running_sum * rescale + tl.sum(weights, 1)
        accumulator = accumulator * rescale[:, None]
        accumulator = add_values(accumulator, weights, v, VARIANT.EXACT_WEIGHTS)

    if IS_BUNDLE:
        # a weight of zero times the NaN or infinity of another row is NaN: once more then, each
        # query by itself and with its own tokens only, so that it stays with the row it belongs to
        is_spoiled = tl.max(tl.max((accumulator != accumulator).to(tl.int32), 1), 0)
        reference = tl.where(running_max == -float("inf"), 0.0, running_max)
        for own in tl.range(0, queries * VARIANT.QUERY_ROWS * is_spoiled, num_stages=1):
            alone = attend_alone(
                given,
                q,
                k_head_ptr,
                v_head_ptr,
                index,
                readers_of,
                kv_len,
                own,
                reference,
                VARIANT,
                ROWS,
                BLOCK_KV,
            )
            accumulator = tl.where((reader == own)[:, None], alone, accumulator)

    # an open chunk may still be empty: weight zero, LSE -inf
    is_empty = running_sum == 0.0
    result = scaled(accumulator / tl.where(is_empty, 1.0, running_sum)[:, None], given)
    lse = tl.where(is_empty, -float("inf"), running_max + tl.log2(running_sum))
    if IS_WINDOWED:
        # not what zero times a NaN is of tokens that others see
        result = tl.where(is_empty[:, None], 0.0, result)

    if part < 0:
        # the only part of its row; read again rather than kept in registers throughout the loop
        request = tl.load(order, mask=valid, other=0, volatile=True).to(tl.int64)
        row = token_row(request, offs_row, VARIANT)
        sink = sinks_of(given, head)
        store_rows(given, row, head, value_column, valid, result, lse, sink, VARIANT)
    else:
        at = token_row(part + query, offs_row, VARIANT)
        store_partials(given, at, head, value_column, valid, result, lse, "", VARIANT)
