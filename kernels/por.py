"""POR, partial output reduction: the exact softmax merge of the partials of each row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# up to this many (row, head) pairs, one program per pair and many parts a step; beyond, a program
# takes several heads and few parts: there are programs enough then, and few parts to a row
_FEW_PAIRS = 2048
_MANY_HEADS = 8


@triton.jit
def _por_kernel(
    out_ptr,  # [B, Hq, D]
    lse_ptr,  # [B, Hq] fp32, base 2
    partial_out_ptr,  # [parts, Hq, D] fp32
    partial_lse_ptr,  # [parts, Hq] fp32, base 2
    plan_ptr,  # packed plan, int32
    part_indptr_offset,
    out_row_stride,
    out_head_stride,
    num_qo_heads,
    HEAD_DIM: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    EARLY_LAUNCH: tl.constexpr,
    WRITE_LSE: tl.constexpr,
):
    """One program merges the partials of some heads of one row, in token order."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.load(plan_ptr + part_indptr_offset + row)
    last = tl.load(plan_ptr + part_indptr_offset + row + 1)
    # a row whose only part is listed as -1 is already in the output
    is_written = (last - first == 1) & (tl.load(plan_ptr + first) < 0)
    if EARLY_LAUNCH:
        # the plan is older than PAC, the partials are PAC's
        tl.extra.cuda.gdc_wait()
    if is_written == 0:
        offset = tl.arange(0, HEADS * HEAD_DIM)
        offs_part = tl.arange(0, BLOCK_PARTS)
        head = tl.program_id(1) * HEADS + offset // HEAD_DIM
        dim = offset % HEAD_DIM
        is_head = head < num_qo_heads
        # every element keeps the state of its head: equal arithmetic, no exchange
        running_max = tl.full([HEADS * HEAD_DIM], -float("inf"), tl.float32)
        running_sum = tl.zeros([HEADS * HEAD_DIM], tl.float32)
        accumulator = tl.zeros([HEADS * HEAD_DIM], tl.float32)
        for start in tl.range(first, last, BLOCK_PARTS):
            listed = start + offs_part < last
            part = tl.load(plan_ptr + start + offs_part, mask=listed, other=0).to(tl.int64)
            wanted = listed[:, None] & is_head[None, :]
            partial = part[:, None] * num_qo_heads + head[None, :]
            lse = tl.load(partial_lse_ptr + partial, mask=wanted, other=-float("inf"))
            # an empty part has LSE -inf and weight zero; what it stored is finite
            values = tl.load(
                partial_out_ptr + partial * HEAD_DIM + dim[None, :], mask=wanted, other=0.0
            )
            new_max = tl.maximum(running_max, tl.max(lse, 0))
            reference = tl.where(new_max == -float("inf"), 0.0, new_max)
            rescale = tl.exp2(running_max - reference)
            weights = tl.exp2(lse - reference[None, :])
            running_sum = running_sum * rescale + tl.sum(weights, 0)
            accumulator = accumulator * rescale + tl.sum(weights * values, 0)
            running_max = new_max
        # a row without parts (padding of a captured batch) becomes zero
        is_empty = running_sum == 0.0
        result = accumulator / tl.where(is_empty, 1.0, running_sum)
        tl.store(
            out_ptr + row * out_row_stride + head * out_head_stride + dim,
            result.to(out_ptr.dtype.element_ty),
            mask=is_head,
        )
        if WRITE_LSE:
            merged = tl.where(is_empty, -float("inf"), running_max + tl.log2(running_sum))
            tl.store(lse_ptr + row * num_qo_heads + head, merged, mask=is_head & (dim == 0))


def por(
    out: torch.Tensor,
    lse: torch.Tensor | None,
    partial_out: torch.Tensor,
    partial_lse: torch.Tensor,
    plan: torch.Tensor,
    *,
    part_indptr_offset: int,
    early_launch: bool = False,
) -> None:
    """Merge partials into `out` ``[B, Hq, D]`` and `lse` ``[B, Hq]``, except rows written by `pac`.

    ``O = sum_i 2^(l_i - m) O_i / sum_i 2^(l_i - m)``, ``l = m + log2(sum_i 2^(l_i - m))`` with
    ``m = max_i l_i``; a row without parts becomes zero with LSE -inf.

    Args:
        early_launch: start while PAC finishes (see `LaunchConfig`).
    """
    batch, num_qo_heads, head_dim = out.shape
    few = batch * num_qo_heads <= _FEW_PAIRS
    heads = 1 if few else min(_MANY_HEADS, triton.next_power_of_2(num_qo_heads))
    _por_kernel[(batch, triton.cdiv(num_qo_heads, heads))](
        out,
        lse if lse is not None else partial_lse,
        partial_out,
        partial_lse,
        plan,
        part_indptr_offset,
        out.stride(0),
        out.stride(1),
        num_qo_heads,
        HEAD_DIM=head_dim,
        HEADS=heads,
        BLOCK_PARTS=16 if few else 2,
        EARLY_LAUNCH=early_launch,
        WRITE_LSE=lse is not None,
        num_warps=4,
        **({"launch_pdl": True} if early_launch else {}),
    )
