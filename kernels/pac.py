"""PAC, prefix attention computation: one KV chunk, once, for every query row that shares it.

POR is part of the same launch: the program that delivers the last partial of a row merges them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sglang_codec.kernels.launch import Tile
from sglang_codec.kernels.por import merge_partials

TASK_INTS = tl.constexpr(8)
# partial rows that one merge step holds, heads of the group included
_MERGE_ROWS = 16


@triton.jit
def _pac_kernel(
    q_ptr,  # [B, Hq, D]
    k_ptr,  # [num_kv_slots, Hkv, D]
    v_ptr,  # [num_kv_slots, Hkv, D]
    out_ptr,  # [B, Hq, D]
    lse_ptr,  # [B, Hq] fp32, base 2
    partial_out_ptr,  # [parts, Hq, D] fp32
    partial_lse_ptr,  # [parts, Hq] fp32, base 2
    arrivals_ptr,  # [B, Hkv] int32, zero between launches
    plan_ptr,  # packed plan, int32
    kv_index_ptr,  # [entries] int32
    row_lengths_ptr,  # [B] int32
    slot_indptr_offset,
    order_offset,
    part_indptr_offset,
    tasks_offset,
    qk_scale,
    q_row_stride,
    q_head_stride,
    k_slot_stride,
    k_head_stride,
    v_slot_stride,
    v_head_stride,
    out_row_stride,
    out_head_stride,
    num_rows,
    num_kv_heads,
    GROUP: tl.constexpr,
    PADDED_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    STAGES: tl.constexpr,
    ZERO_PADDING: tl.constexpr,
    WRITE_LSE: tl.constexpr,
):
    """One program walks the tasks of one slot for one KV head."""
    slot = tl.program_id(0)
    kv_head = tl.program_id(1)
    num_qo_heads = num_kv_heads * GROUP
    offs_row = tl.arange(0, ROWS)
    offs_dim = tl.arange(0, HEAD_DIM)
    offs_kv = tl.arange(0, BLOCK_KV)
    query = offs_row // GROUP
    head = kv_head * GROUP + offs_row % GROUP
    k_head_ptr = k_ptr + kv_head.to(tl.int64) * k_head_stride
    v_head_ptr = v_ptr + kv_head.to(tl.int64) * v_head_stride

    first_task = tl.load(plan_ptr + slot_indptr_offset + slot)
    last_task = tl.load(plan_ptr + slot_indptr_offset + slot + 1)
    for task in tl.range(first_task, last_task, num_stages=1):
        record = plan_ptr + tasks_offset + task * TASK_INTS
        kv_start = tl.load(record)
        kv_len = tl.load(record + 1)
        first = tl.load(record + 2)
        queries = tl.load(record + 3)
        part = tl.load(record + 4)
        open_row = tl.load(record + 5)
        open_base = tl.load(record + 6)
        # an open chunk ends where its row ends now, not where it ended when the plan was made
        row_length = tl.load(row_lengths_ptr + open_row, mask=open_row >= 0, other=0)
        kv_len = tl.where(open_row >= 0, tl.minimum(row_length - open_base, kv_len), kv_len)

        valid = query < queries
        row = tl.load(plan_ptr + order_offset + first + query, mask=valid, other=0).to(tl.int64)
        q_row = q_ptr + row * q_row_stride + head * q_head_stride
        q = tl.load(q_row[:, None] + offs_dim[None, :], mask=valid[:, None], other=0.0)

        running_max = tl.full([ROWS], -float("inf"), tl.float32)
        running_sum = tl.zeros([ROWS], tl.float32)
        accumulator = tl.zeros([ROWS, HEAD_DIM], tl.float32)
        for start in tl.range(0, kv_len, BLOCK_KV, num_stages=STAGES):
            token = start + offs_kv
            # beyond the end the last token is read again: always a valid slot of this very chunk,
            # so its weight of zero never meets a NaN, and the loads need no mask
            entry = kv_start + tl.minimum(token, kv_len - 1)
            kv_slot = tl.load(kv_index_ptr + entry).to(tl.int64)
            k = tl.load(k_head_ptr + kv_slot[None, :] * k_slot_stride + offs_dim[:, None])
            scores = tl.dot(q, k, input_precision="ieee") * qk_scale
            scores = tl.where((token < kv_len)[None, :], scores, -float("inf"))
            new_max = tl.maximum(running_max, tl.max(scores, 1))
            rescale = tl.exp2(running_max - new_max)
            weights = tl.exp2(scores - new_max[:, None])
            running_sum = running_sum * rescale + tl.sum(weights, 1)
            v = tl.load(v_head_ptr + kv_slot[:, None] * v_slot_stride + offs_dim[None, :])
            accumulator = accumulator * rescale[:, None]
            accumulator = tl.dot(weights.to(v.dtype), v, accumulator, input_precision="ieee")
            running_max = new_max

        # an open chunk may still be empty: weight zero, LSE -inf
        is_empty = running_sum == 0.0
        result = accumulator / tl.where(is_empty, 1.0, running_sum)[:, None]
        lse = tl.where(is_empty, -float("inf"), running_max + tl.log2(running_sum))
        partial = (part + query).to(tl.int64) * num_qo_heads + head
        partial_row = partial_out_ptr + partial * HEAD_DIM
        tl.store(partial_row[:, None] + offs_dim[None, :], result, mask=valid[:, None])
        tl.store(partial_lse_ptr + partial, lse, mask=valid)

        # every warp's partials are written before the arrival is counted, and the count of the last
        # arrival is seen only after everybody's partials
        tl.debug_barrier()
        offs_query = tl.arange(0, QUERIES)
        present = offs_query < queries
        owner = tl.load(plan_ptr + order_offset + first + offs_query, mask=present, other=0)
        indptr = plan_ptr + part_indptr_offset + owner
        parts = tl.load(indptr + 1, mask=present, other=0) - tl.load(indptr, mask=present, other=0)
        arrivals = arrivals_ptr + owner * num_kv_heads + kv_head
        arrived = tl.atomic_add(arrivals, 1, mask=present, sem="acq_rel") + 1
        completes = (present & (arrived == parts)).to(tl.int32)
        if tl.sum(completes, 0) > 0:
            tl.debug_barrier()
            tl.store(arrivals, tl.zeros_like(owner), mask=completes > 0)
            for nth in tl.range(0, queries, num_stages=1):
                if tl.sum(tl.where(offs_query == nth, completes, 0), 0) > 0:
                    merged_row = tl.load(plan_ptr + order_offset + first + nth)
                    merge_partials(
                        out_ptr,
                        lse_ptr,
                        partial_out_ptr,
                        partial_lse_ptr,
                        plan_ptr,
                        tl.load(plan_ptr + part_indptr_offset + merged_row),
                        tl.load(plan_ptr + part_indptr_offset + merged_row + 1),
                        merged_row,
                        kv_head,
                        out_row_stride,
                        out_head_stride,
                        num_qo_heads,
                        GROUP,
                        PADDED_GROUP,
                        HEAD_DIM,
                        BLOCK_PARTS,
                        WRITE_LSE,
                    )

    if ZERO_PADDING:
        # rows of a captured batch that the plan does not know
        offs_group = tl.arange(0, PADDED_GROUP)
        heads = kv_head * GROUP + offs_group
        is_head = offs_group < GROUP
        planned = tl.load(plan_ptr)
        for pad in tl.range(planned + slot, num_rows, tl.num_programs(0), num_stages=1):
            pad_row = tl.cast(pad, tl.int64)
            out_row = out_ptr + pad_row * out_row_stride + heads * out_head_stride
            zeros = tl.zeros([PADDED_GROUP, HEAD_DIM], out_ptr.dtype.element_ty)
            tl.store(out_row[:, None] + offs_dim[None, :], zeros, mask=is_head[:, None])
            if WRITE_LSE:
                nothing = tl.full([PADDED_GROUP], -float("inf"), tl.float32)
                tl.store(lse_ptr + pad_row * num_qo_heads + heads, nothing, mask=is_head)


def pac(
    q: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    partial_out: torch.Tensor,
    partial_lse: torch.Tensor,
    arrivals: torch.Tensor,
    plan: torch.Tensor,
    kv_index: torch.Tensor,
    row_lengths: torch.Tensor,
    *,
    slot_indptr_offset: int,
    order_offset: int,
    part_indptr_offset: int,
    tasks_offset: int,
    num_slots: int,
    sm_scale: float,
    tile: Tile,
    zero_padding: bool,
) -> None:
    """Run the tasks of one class, and merge every row whose last partial this delivers.

    Args:
        q, out: ``[B, Hq, D]``. k_buffer, v_buffer: ``[num_kv_slots, Hkv, D]``. The last dimension
            of each is contiguous.
        lse: ``[B, Hq]`` fp32 contiguous, base 2, or None.
        partial_out: ``[parts, Hq, D]`` fp32 contiguous; partial_lse: ``[parts, Hq]``.
        arrivals: int32 ``[B, Hkv]``, zero; zero again when all classes have run.
        plan: packed plan (`PlanLayout`), int32; the offsets say where its sections begin.
        kv_index: int32 KV slots. row_lengths: int32 ``[B]``, KV tokens of each row now.
        sm_scale: factor of the scores before the softmax.
        zero_padding: also write zeros (LSE -inf) to the rows beyond the planned batch.
    """
    num_rows, num_qo_heads, head_dim = q.shape
    num_kv_heads = k_buffer.shape[1]
    group = num_qo_heads // num_kv_heads
    padded_group = triton.next_power_of_2(group)
    _pac_kernel[(num_slots, num_kv_heads)](
        q,
        k_buffer,
        v_buffer,
        out,
        lse if lse is not None else partial_lse,
        partial_out,
        partial_lse,
        arrivals,
        plan,
        kv_index,
        row_lengths,
        slot_indptr_offset,
        order_offset,
        part_indptr_offset,
        tasks_offset,
        sm_scale * 1.4426950408889634,  # log2(e): the softmax runs in base 2
        q.stride(0),
        q.stride(1),
        k_buffer.stride(0),
        k_buffer.stride(1),
        v_buffer.stride(0),
        v_buffer.stride(1),
        out.stride(0),
        out.stride(1),
        num_rows,
        num_kv_heads,
        GROUP=group,
        PADDED_GROUP=padded_group,
        HEAD_DIM=head_dim,
        ROWS=tile.rows,
        QUERIES=triton.next_power_of_2(tile.rows // group),
        BLOCK_KV=tile.block_kv,
        BLOCK_PARTS=max(1, min(8, _MERGE_ROWS // padded_group)),
        STAGES=tile.stages,
        ZERO_PADDING=zero_padding,
        WRITE_LSE=lse is not None,
        num_warps=tile.num_warps,
        **({"maxnreg": tile.max_registers} if tile.max_registers else {}),
    )
