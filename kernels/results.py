"""Where PAC's results go, from either kernel: final rows to the output, the others to partials."""

from __future__ import annotations

import triton
import triton.language as tl

from sglang_codec.kernels.columns import of_width
from sglang_codec.kernels.softmax import join_sink


@triton.jit
def sinks_of(given, head):
    """The sinks of query heads ``[M]``; None where the layer has none."""
    sink = None
    if given.sinks_ptr is not None:
        sink = tl.load(given.sinks_ptr + head)
    return sink


@triton.jit
def scaled(result, given):
    """What the weights make of the values: of stored ones times the scale that they lack."""
    if given.v_scale is not None:
        result *= given.v_scale
    return result


@triton.jit
def store_rows(given, row, head, dim, valid, result, lse, sink, VARIANT: tl.constexpr):
    """Output ``[M, D]`` and LSE ``[M]`` of batch rows that have no other part, with their sinks."""
    if sink is not None:
        left, lse = join_sink(lse, sink)
        result = result * left[:, None]
    out_row = given.out_ptr + row * given.out_row_stride + head * given.out_head_stride
    tl.store(
        out_row[:, None] + dim[None, :],
        result.to(given.out_ptr.dtype.element_ty),
        mask=of_width(valid[:, None], dim[None, :], VARIANT.VALUE_DIM),
    )
    if VARIANT.WRITE_LSE:
        tl.store(given.lse_ptr + row * given.num_qo_heads + head, lse, mask=valid)


@triton.jit
def store_partials(
    given, part, head, dim, valid, result, lse, KEPT: tl.constexpr, VARIANT: tl.constexpr
):
    """The same of parts that POR will merge; `KEPT` is how long L2 is to hold them."""
    partial = part.to(tl.int64) * given.num_qo_heads + head
    partial_row = given.partial_out_ptr + partial * VARIANT.VALUE_DIM
    written = of_width(valid[:, None], dim[None, :], VARIANT.VALUE_DIM)
    tl.store(partial_row[:, None] + dim[None, :], result, mask=written, eviction_policy=KEPT)
    tl.store(given.partial_lse_ptr + partial, lse, mask=valid, eviction_policy=KEPT)
