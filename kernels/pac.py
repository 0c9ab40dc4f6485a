"""PAC, prefix attention computation: one KV chunk, once, for every query row that shares it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sglang_codec.kernels.launch import LaunchConfig

TASK_INTS = tl.constexpr(8)
# the stock kernels for so small groups use no tensor cores and so keep the softmax weights in fp32;
# here a second product with what rounding took from the weights does the same
_EXACT_BELOW_GROUP = 4


@triton.jit
def _pac_task(
    task,
    kv_head,
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    partial_out_ptr,
    partial_lse_ptr,
    plan_ptr,
    kv_index_ptr,
    row_lengths_ptr,
    order_offset,
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
    num_qo_heads,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    STAGES: tl.constexpr,
    EXACT_WEIGHTS: tl.constexpr,
    WRITE_LSE: tl.constexpr,
):
    """Attention of one query tile over one KV chunk for one KV head."""
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

    offs_row = tl.arange(0, ROWS)
    offs_dim = tl.arange(0, HEAD_DIM)
    offs_kv = tl.arange(0, BLOCK_KV)
    query = offs_row // GROUP
    head = kv_head * GROUP + offs_row % GROUP
    valid = query < queries
    row = tl.load(plan_ptr + order_offset + first + query, mask=valid, other=0).to(tl.int64)
    q = tl.load(
        q_ptr + row[:, None] * q_row_stride + head[:, None] * q_head_stride + offs_dim[None, :],
        mask=valid[:, None],
        other=0.0,
    )
    k_head_ptr = k_ptr + kv_head.to(tl.int64) * k_head_stride
    v_head_ptr = v_ptr + kv_head.to(tl.int64) * v_head_stride

    running_max = tl.full([ROWS], -float("inf"), tl.float32)
    running_sum = tl.zeros([ROWS], tl.float32)
    accumulator = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    for start in tl.range(0, kv_len, BLOCK_KV, num_stages=STAGES):
        token = start + offs_kv
        # beyond the end the last token is read again: always a valid slot of this very chunk, so
        # its weight of zero never meets a NaN, and the loads need no mask
        slot = tl.load(kv_index_ptr + kv_start + tl.minimum(token, kv_len - 1)).to(tl.int64)
        k = tl.load(k_head_ptr + slot[None, :] * k_slot_stride + offs_dim[:, None])
        scores = tl.dot(q, k, input_precision="ieee") * qk_scale
        scores = tl.where((token < kv_len)[None, :], scores, -float("inf"))
        new_max = tl.maximum(running_max, tl.max(scores, 1))
        rescale = tl.exp2(running_max - new_max)
        weights = tl.exp2(scores - new_max[:, None])
        running_sum = running_sum * rescale + tl.sum(weights, 1)
        v = tl.load(v_head_ptr + slot[:, None] * v_slot_stride + offs_dim[None, :])
        accumulator = accumulator * rescale[:, None]
        rounded = weights.to(v.dtype)
        accumulator = tl.dot(rounded, v, accumulator, input_precision="ieee")
        if EXACT_WEIGHTS:
            rest = (weights - rounded.to(tl.float32)).to(v.dtype)
            accumulator = tl.dot(rest, v, accumulator, input_precision="ieee")
        running_max = new_max

    # an open chunk may still be empty: weight zero, LSE -inf
    is_empty = running_sum == 0.0
    result = accumulator / tl.where(is_empty, 1.0, running_sum)[:, None]
    lse = tl.where(is_empty, -float("inf"), running_max + tl.log2(running_sum))

    if part < 0:
        # the only part of its row; read again rather than kept in registers throughout the loop
        row = tl.load(
            plan_ptr + order_offset + first + query, mask=valid, other=0, volatile=True
        ).to(tl.int64)
        out_row = out_ptr + row * out_row_stride + head * out_head_stride
        tl.store(
            out_row[:, None] + offs_dim[None, :],
            result.to(out_ptr.dtype.element_ty),
            mask=valid[:, None],
        )
        if WRITE_LSE:
            tl.store(lse_ptr + row * num_qo_heads + head, lse, mask=valid)
    else:
        partial = (part + query).to(tl.int64) * num_qo_heads + head
        partial_row = partial_out_ptr + partial * HEAD_DIM
        tl.store(partial_row[:, None] + offs_dim[None, :], result, mask=valid[:, None])
        tl.store(partial_lse_ptr + partial, lse, mask=valid)


@triton.jit
def _pac_kernel(
    q_ptr,  # [B, Hq, D]
    k_ptr,  # [num_slots, Hkv, D]
    v_ptr,  # [num_slots, Hkv, D]
    out_ptr,  # [B, Hq, D]
    lse_ptr,  # [B, Hq] fp32, base 2
    partial_out_ptr,  # [parts, Hq, D] fp32
    partial_lse_ptr,  # [parts, Hq] fp32, base 2
    plan_ptr,  # packed plan, int32
    kv_index_ptr,  # [entries] int32
    row_lengths_ptr,  # [B] int32
    order_offset,
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
    num_slots,
    num_qo_heads,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SMALL_ROWS: tl.constexpr,
    SMALL_BLOCK_KV: tl.constexpr,
    SMALL_STAGES: tl.constexpr,
    LARGE_ROWS: tl.constexpr,
    LARGE_BLOCK_KV: tl.constexpr,
    LARGE_STAGES: tl.constexpr,
    LONG_BLOCK_KV: tl.constexpr,
    LONG_STAGES: tl.constexpr,
    EXACT_WEIGHTS: tl.constexpr,
    WRITE_LSE: tl.constexpr,
):
    """One program walks the tasks of one slot for one KV head: large, long, then small ones."""
    slot = tl.program_id(0)
    kv_head = tl.program_id(1)
    for turn in tl.static_range(3):
        # classes in the plan: small, large, long
        of_class = plan_ptr + ((turn + 1) % 3) * (num_slots + 1) + slot
        for task in tl.range(tl.load(of_class), tl.load(of_class + 1), num_stages=1):
            _pac_task(
                task,
                kv_head,
                q_ptr,
                k_ptr,
                v_ptr,
                out_ptr,
                lse_ptr,
                partial_out_ptr,
                partial_lse_ptr,
                plan_ptr,
                kv_index_ptr,
                row_lengths_ptr,
                order_offset,
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
                num_qo_heads,
                GROUP,
                HEAD_DIM,
                LARGE_ROWS if turn == 0 else SMALL_ROWS,
                LARGE_BLOCK_KV if turn == 0 else (LONG_BLOCK_KV if turn == 1 else SMALL_BLOCK_KV),
                LARGE_STAGES if turn == 0 else (LONG_STAGES if turn == 1 else SMALL_STAGES),
                EXACT_WEIGHTS,
                WRITE_LSE,
            )


def pac(
    q: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    partial_out: torch.Tensor,
    partial_lse: torch.Tensor,
    plan: torch.Tensor,
    kv_index: torch.Tensor,
    row_lengths: torch.Tensor,
    *,
    order_offset: int,
    tasks_offset: int,
    num_slots: int,
    sm_scale: float,
    config: LaunchConfig,
) -> None:
    """Run every task of a packed plan.

    Args:
        q, out: ``[B, Hq, D]``. k_buffer, v_buffer: ``[num_slots, Hkv, D]``. The last dimension of
            each is contiguous.
        lse: ``[B, Hq]`` fp32 contiguous, base 2, or None.
        partial_out: ``[parts, Hq, D]`` fp32 contiguous; partial_lse: ``[parts, Hq]``.
        plan: packed plan (`PlanLayout`), int32; the offsets say where its sections begin.
        kv_index: int32 KV slots. row_lengths: int32 ``[B]``, KV tokens of each row now.
        sm_scale: factor of the scores before the softmax.

    Rows with one part are written to `out` (and `lse`); the others leave partials for `por`.
    """
    num_qo_heads, head_dim = q.shape[1], q.shape[2]
    num_kv_heads = k_buffer.shape[1]
    group = num_qo_heads // num_kv_heads
    _pac_kernel[(num_slots, num_kv_heads)](
        q,
        k_buffer,
        v_buffer,
        out,
        lse if lse is not None else partial_lse,
        partial_out,
        partial_lse,
        plan,
        kv_index,
        row_lengths,
        order_offset,
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
        num_slots,
        num_qo_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        SMALL_ROWS=config.small.rows,
        SMALL_BLOCK_KV=config.small.block_kv,
        SMALL_STAGES=config.small.stages,
        LARGE_ROWS=config.large.rows,
        LARGE_BLOCK_KV=config.large.block_kv,
        LARGE_STAGES=config.large.stages,
        LONG_BLOCK_KV=config.long.block_kv,
        LONG_STAGES=config.long.stages,
        EXACT_WEIGHTS=group < _EXACT_BELOW_GROUP and v_buffer.dtype != torch.float32,
        WRITE_LSE=lse is not None,
        num_warps=config.num_warps,
    )
