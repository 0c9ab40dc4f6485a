"""What the roles hand each other: query buffers and a ring of KV steps, with their barriers."""

from __future__ import annotations

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from sglang_codec.kernels.hopper.rows import LOADING_WARPS, ROWS

QUERY_BUFFERS = gl.constexpr(4)  # of 64 rows


class Ring(NamedTuple):
    """Shared memory, and barriers of as many stages or buffers.

    Full when the copies of every loading thread have come; a KV step is empty when both computing
    warpgroups have let go of it, `handed` when one has put its state there.
    """

    q: Any  # [QUERY_BUFFERS, 64, D]
    kv: Any  # [2 STAGES, 64, D]: K and V of each stage
    readers: Any  # [STAGES, 64] int32: of a bundle, who sees each token
    q_full: Any
    q_empty: Any
    k_full: Any
    v_full: Any
    empty: Any
    handed: Any


@gluon.jit
def make_ring(dtype: gl.constexpr, VARIANT: gl.constexpr):
    """The ring of a program, all of it empty."""
    HEAD_DIM: gl.constexpr = VARIANT.HEAD_DIM
    STAGES: gl.constexpr = VARIANT.STAGES
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, HEAD_DIM], dtype)
    barrier_layout: gl.constexpr = mbarrier.MBarrierLayout()
    kv = gl.allocate_shared_memory(dtype, [2 * STAGES, ROWS, HEAD_DIM], layout)
    q = gl.allocate_shared_memory(dtype, [QUERY_BUFFERS, ROWS, HEAD_DIM], layout)
    line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    readers = gl.allocate_shared_memory(gl.int32, [STAGES, ROWS], line)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    handed = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    q_full = gl.allocate_shared_memory(gl.int64, [QUERY_BUFFERS, 1], barrier_layout)
    q_empty = gl.allocate_shared_memory(gl.int64, [QUERY_BUFFERS, 1], barrier_layout)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=32 * LOADING_WARPS)
        mbarrier.init(v_full.index(stage), count=32 * LOADING_WARPS)
        mbarrier.init(empty.index(stage), count=2)
        mbarrier.init(handed.index(stage), count=1)
    for buffer in gl.static_range(QUERY_BUFFERS):
        mbarrier.init(q_full.index(buffer), count=32 * LOADING_WARPS)
        mbarrier.init(q_empty.index(buffer), count=2)
    return Ring(q, kv, readers, q_full, q_empty, k_full, v_full, empty, handed)


@gluon.jit
def release(barrier, is_shared):
    """Let go of a buffer or step: once of two times if another warpgroup reads it too, else twice.

    The count of an arrival has to be known to the compiler.
    """
    if is_shared:
        mbarrier.arrive(barrier, count=1)
    else:
        mbarrier.arrive(barrier, count=2)
