"""POR, partial output reduction: the exact softmax merge of the partials of each row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# partials merged per step; a row has a handful, a long private one a few dozen
_BLOCK_PARTS = 8


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
    BLOCK_PARTS: tl.constexpr,
    WRITE_LSE: tl.constexpr,
):
    """One program merges the partials of one row and one query head, in token order."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    first = tl.load(plan_ptr + part_indptr_offset + row)
    last = tl.load(plan_ptr + part_indptr_offset + row + 1)
    # a row with one part is already in the output
    if last - first != 1:
        offs_dim = tl.arange(0, HEAD_DIM)
        offs_part = tl.arange(0, BLOCK_PARTS)
        running_max = -float("inf")
        running_sum = 0.0
        accumulator = tl.zeros([HEAD_DIM], tl.float32)
        for start in tl.range(first, last, BLOCK_PARTS):
            listed = start + offs_part < last
            part = tl.load(plan_ptr + start + offs_part, mask=listed, other=0).to(tl.int64)
            partial = part * num_qo_heads + head
            lse = tl.load(partial_lse_ptr + partial, mask=listed, other=-float("inf"))
            # an empty part has LSE -inf and weight zero; what it stored is finite
            values = tl.load(
                partial_out_ptr + partial[:, None] * HEAD_DIM + offs_dim[None, :],
                mask=listed[:, None],
                other=0.0,
            )
            new_max = tl.maximum(running_max, tl.max(lse, 0))
            reference = tl.where(new_max == -float("inf"), 0.0, new_max)
            rescale = tl.exp2(running_max - reference)
            weights = tl.exp2(lse - reference)
            running_sum = running_sum * rescale + tl.sum(weights, 0)
            accumulator = accumulator * rescale + tl.sum(weights[:, None] * values, 0)
            running_max = new_max
        # a row without parts (padding of a captured batch) becomes zero
        is_empty = running_sum == 0.0
        result = accumulator / tl.where(is_empty, 1.0, running_sum)
        tl.store(
            out_ptr + row * out_row_stride + head * out_head_stride + offs_dim,
            result.to(out_ptr.dtype.element_ty),
        )
        if WRITE_LSE:
            merged = tl.where(is_empty, -float("inf"), running_max + tl.log2(running_sum))
            tl.store(lse_ptr + row * num_qo_heads + head, merged)


def por(
    out: torch.Tensor,
    lse: torch.Tensor | None,
    partial_out: torch.Tensor,
    partial_lse: torch.Tensor,
    plan: torch.Tensor,
    *,
    part_indptr_offset: int,
) -> None:
    """Merge partials into `out` ``[B, Hq, D]`` (and `lse` ``[B, Hq]``) for rows with other than one part.

    ``O = sum_i 2^(l_i - m) O_i / sum_i 2^(l_i - m)``, ``l = m + log2(sum_i 2^(l_i - m))`` with
    ``m = max_i l_i``; a row without parts becomes zero with LSE -inf.
    """
    batch, num_qo_heads, head_dim = out.shape
    _por_kernel[(batch, num_qo_heads)](
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
        BLOCK_PARTS=_BLOCK_PARTS,
        WRITE_LSE=lse is not None,
        num_warps=2,
    )
