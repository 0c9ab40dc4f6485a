"""Which query row or token a row of shared memory holds, and what copies it there.

A loading thread copies neighbours, to know them from few loads, but writes them as far apart as
leaves its place in the swizzled rows the same.
"""

from __future__ import annotations

from triton import language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

ROWS = gl.constexpr(64)  # query rows of a computing warpgroup
LOADING_WARPS = gl.constexpr(4)


@gluon.constexpr_function
def step_tokens(classes):
    """KV tokens of a step, of all classes of tasks alike."""
    return classes[0][2]


@gluon.constexpr_function
def computing_warpgroups(columns):
    """An output of 256 columns takes half of the registers of a thread, where there are 256 in all:
    one warpgroup then computes, with as many as a thread can have."""
    return 2 if columns <= 128 else 1


@gluon.constexpr_function
def rest_columns(key_dim, columns):
    """Columns of Q and K beyond those of V, in places of their own: 192 are no power of two."""
    return 64 if key_dim > columns else 0


@gluon.constexpr_function
def copied_columns(key_dim, columns):
    """Columns of a row that threads copy side by side, of Q, K and V alike; then the next ones."""
    return rest_columns(key_dim, columns) or columns


@gluon.constexpr_function
def pool_width(copied, exponent):
    """Columns of two bytes that those of K or V have in the pool: what `held_by` asks of tokens."""
    return copied // 2 if exponent else copied


@gluon.constexpr_function
def copied_by(copied, rows):
    """Of a copy's rows, those that one instruction of the loading warps writes, and a thread's."""
    at_once = 32 * LOADING_WARPS.value // (copied // 8)  # 16 bytes a thread
    return at_once, rows // at_once


@gluon.constexpr_function
def loading_layout(copied, of_thread):
    """Of two-dimensional tensors whose rows the loading warps share as they do a copy's."""
    rows = copied_by(copied, ROWS.value)[0]
    warps = LOADING_WARPS.value
    return gl.BlockedLayout(of_thread, [rows // warps, 32 * warps // rows], [warps, 1], [1, 0])


@gluon.constexpr_function
def product_layout(columns):
    """Of a warpgroup's matrix product: 64 query rows times as many columns."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns, 16])


@gluon.constexpr_function
def common_factor(group, rows):
    """The largest power of two that divides both."""
    return min(group & -group, rows)


@gluon.jit
def held_by(row, COPIED: gl.constexpr, OF: gl.constexpr):
    """Which of `OF` query rows, or tokens of a step, a row of shared memory holds."""
    AT_ONCE: gl.constexpr = copied_by(COPIED, OF)[0]
    OF_THREAD: gl.constexpr = copied_by(COPIED, OF)[1]
    return row % AT_ONCE * OF_THREAD + row // AT_ONCE


@gluon.jit
def to_rows(held, COPIED: gl.constexpr, layout: gl.constexpr):
    """What belongs to queries or tokens, neighbours in a thread, as rows of shared memory."""
    OF: gl.constexpr = held.shape[0]
    AT_ONCE: gl.constexpr = copied_by(COPIED, OF)[0]
    OF_THREAD: gl.constexpr = copied_by(COPIED, OF)[1]
    held = held.reshape([AT_ONCE, OF_THREAD]).permute([1, 0]).reshape([OF])
    return gl.convert_layout(held, layout, assert_trivial=True)


@gluon.jit
def copied_from(heads_ptr, row, row_stride, dim):
    """Addresses ``[rows, D]`` of rows that lie `row_stride` elements apart.

    One multiplication each, because it adds bytes: 32 bits times 32 bits to a 64-bit address.
    """
    dtype: gl.constexpr = heads_ptr.dtype.element_ty
    stride = (row_stride * (dtype.primitive_bitwidth // 8)).to(gl.uint32).to(gl.uint64)
    offset = row.to(gl.uint32).to(gl.uint64) * stride
    in_bytes = (heads_ptr + dim).to(tl.pointer_type(gl.int8), bitcast=True)
    return (in_bytes[None, :] + offset[:, None]).to(tl.pointer_type(dtype), bitcast=True)
