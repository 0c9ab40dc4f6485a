"""POR, partial output reduction: the exact softmax merge of the partials of a row."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def merge_partials(
    out_ptr,
    lse_ptr,
    partial_out_ptr,
    partial_lse_ptr,
    plan_ptr,
    first_entry,
    last_entry,
    row,
    kv_head,
    out_row_stride,
    out_head_stride,
    num_qo_heads,
    GROUP: tl.constexpr,
    PADDED_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    WRITE_LSE: tl.constexpr,
):
    """Merge the partials listed in ``plan[first_entry:last_entry]`` for one row and one KV head.

    ``O = sum_i 2^(l_i - m) O_i / sum_i 2^(l_i - m)`` and ``l = m + log2(sum_i 2^(l_i - m))`` with
    ``m = max_i l_i``. Partials are taken in the listed (token) order, whoever runs this. Empty parts
    (LSE -inf) weigh nothing; a row with only empty parts becomes zero with LSE -inf.
    """
    offs_part = tl.arange(0, BLOCK_PARTS)
    offs_group = tl.arange(0, PADDED_GROUP)
    offs_dim = tl.arange(0, HEAD_DIM)
    head = kv_head * GROUP + offs_group
    is_head = offs_group < GROUP
    running_max = tl.full([PADDED_GROUP], -float("inf"), tl.float32)
    running_sum = tl.zeros([PADDED_GROUP], tl.float32)
    accumulator = tl.zeros([PADDED_GROUP, HEAD_DIM], tl.float32)
    for start in tl.range(first_entry, last_entry, BLOCK_PARTS, num_stages=1):
        listed = start + offs_part < last_entry
        part = tl.load(plan_ptr + start + offs_part, mask=listed, other=0).to(tl.int64)
        partial = part[:, None] * num_qo_heads + head[None, :]
        wanted = listed[:, None] & is_head[None, :]
        # .cg: written by other multiprocessors during this very launch
        lse = tl.load(
            partial_lse_ptr + partial, mask=wanted, other=-float("inf"), cache_modifier=".cg"
        )
        values = tl.load(
            partial_out_ptr + partial[:, :, None] * HEAD_DIM + offs_dim[None, None, :],
            mask=wanted[:, :, None],
            other=0.0,
            cache_modifier=".cg",
        )
        new_max = tl.maximum(running_max, tl.max(lse, 0))
        reference = tl.where(new_max == -float("inf"), 0.0, new_max)
        rescale = tl.exp2(running_max - reference)
        weights = tl.exp2(lse - reference[None, :])
        running_sum = running_sum * rescale + tl.sum(weights, 0)
        accumulator = accumulator * rescale[:, None] + tl.sum(weights[:, :, None] * values, 0)
        running_max = new_max
    is_empty = running_sum == 0.0
    result = accumulator / tl.where(is_empty, 1.0, running_sum)[:, None]
    out_row = out_ptr + row.to(tl.int64) * out_row_stride + head * out_head_stride
    tl.store(
        out_row[:, None] + offs_dim[None, :],
        result.to(out_ptr.dtype.element_ty),
        mask=is_head[:, None],
    )
    if WRITE_LSE:
        merged = tl.where(is_empty, -float("inf"), running_max + tl.log2(running_sum))
        tl.store(lse_ptr + row.to(tl.int64) * num_qo_heads + head, merged, mask=is_head)
