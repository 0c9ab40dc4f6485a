"""Where a task's result goes: to the output, or to the partials that POR merges."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from sglang_codec.kernels.hopper.steps import values_layout
from sglang_codec.kernels.hopper.walk import KEPT


@gluon.jit
def store(given, task, row, rows, dim, result, lse, VARIANT: gl.constexpr):
    """Store output ``[64, D]`` and LSE ``[64]`` of a task: `rows` of its tile, batch rows `row`."""
    query, head, valid = rows
    lse = gl.convert_layout(lse, gl.SliceLayout(1, values_layout(VARIANT)))
    if task.part < 0:
        at_row = row.to(gl.int64)
        out_rows = given.out_ptr + at_row * given.out_row_stride + head * given.out_head_stride
        gl.store(
            out_rows[:, None] + dim[None, :],
            result.to(given.k_ptr.dtype.element_ty),
            mask=valid[:, None],
        )
        if VARIANT.WRITE_LSE:
            gl.store(given.lse_ptr + at_row * given.num_qo_heads + head, lse, mask=valid)
    else:
        partial = (task.part + query).to(gl.int64) * given.num_qo_heads + head
        partial_rows = given.partial_out_ptr + partial * VARIANT.HEAD_DIM
        gl.store(
            partial_rows[:, None] + dim[None, :],
            result,
            mask=valid[:, None],
            eviction_policy=KEPT,
        )
        gl.store(given.partial_lse_ptr + partial, lse, mask=valid, eviction_policy=KEPT)
