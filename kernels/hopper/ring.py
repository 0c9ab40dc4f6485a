"""What the roles hand each other: query buffers and a ring of KV steps, with their barriers."""

from __future__ import annotations

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from sglang_codec.kernels.hopper.rows import LOADING_WARPS, ROWS, computing_warpgroups


@gluon.constexpr_function
def query_buffers(head_dim):
    """Buffers of 64 query rows: a large tile takes two, and beside 256 columns no more fit."""
    return 4 if head_dim <= 128 else 2


@gluon.constexpr_function
def kv_places(head_dim, stages):
    """Places for K or V of a step: where they are wide, `stages` counts these and not steps."""
    return 2 * stages if computing_warpgroups(head_dim) == 2 else stages


class Ring(NamedTuple):
    """Shared memory, and barriers of as many places or buffers.

    Full when the copies of every loading thread have come, or one of them says that all have
    stored what was fp8. Empty when the computing warpgroups have
    let go: two of them of a whole step, one alone of K and of V, each as soon as it is read; so
    their barriers are a step's or, K's and V's in turn, a place's (`place_of`). `handed` when a
    warpgroup has put its state over a step.
    """

    q: Any  # [query_buffers(D), 64, D]
    kv: Any  # [kv_places(D, STAGES), 64, D]
    readers: Any  # [STAGES, 64] int32: of a bundle, who sees each token of a step
    bytes: Any  # [2 AHEAD, 64, D] uint8: K and V that are fp8, in turn; None for others
    byte_readers: Any  # [AHEAD, 64] int32: `readers` of these
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
    BUFFERS: gl.constexpr = query_buffers(HEAD_DIM)
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, HEAD_DIM], dtype)
    barrier_layout: gl.constexpr = mbarrier.MBarrierLayout()
    PAIRS: gl.constexpr = computing_warpgroups(HEAD_DIM) == 2
    PLACES: gl.constexpr = kv_places(HEAD_DIM, STAGES)
    kv = gl.allocate_shared_memory(dtype, [PLACES, ROWS, HEAD_DIM], layout)
    q = gl.allocate_shared_memory(dtype, [BUFFERS, ROWS, HEAD_DIM], layout)
    line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    readers = gl.allocate_shared_memory(gl.int32, [STAGES, ROWS], line)
    staged = None
    staged_readers = None
    if VARIANT.EXPONENT:
        in_order: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
        size: gl.constexpr = [2 * VARIANT.AHEAD, ROWS, HEAD_DIM]
        staged = gl.allocate_shared_memory(gl.uint8, size, in_order)
        staged_readers = gl.allocate_shared_memory(gl.int32, [VARIANT.AHEAD, ROWS], line)
    FILLING: gl.constexpr = 1 if VARIANT.EXPONENT else 32 * LOADING_WARPS
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    v_full = k_full
    if PAIRS:
        v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    handed = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    q_full = gl.allocate_shared_memory(gl.int64, [BUFFERS, 1], barrier_layout)
    q_empty = gl.allocate_shared_memory(gl.int64, [BUFFERS, 1], barrier_layout)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=FILLING)
        if PAIRS:
            mbarrier.init(v_full.index(stage), count=FILLING)
        mbarrier.init(empty.index(stage), count=2)
        mbarrier.init(handed.index(stage), count=1)
    for buffer in gl.static_range(BUFFERS):
        mbarrier.init(q_full.index(buffer), count=32 * LOADING_WARPS)
        mbarrier.init(q_empty.index(buffer), count=2)
    barriers = (q_full, q_empty, k_full, v_full, empty, handed)
    return Ring(q, kv, readers, staged, staged_readers, *barriers)


@gluon.jit
def place_of(step, OF_V: gl.constexpr, VARIANT: gl.constexpr):
    """Where K or V of a step is, which barriers are its own, and the parity of their uses."""
    STAGES: gl.constexpr = VARIANT.STAGES
    if computing_warpgroups(VARIANT.HEAD_DIM) == 2:
        barrier = step % STAGES
        place = 2 * barrier + OF_V
        uses = step // STAGES
    else:
        barrier = (2 * step + OF_V) % STAGES
        place = barrier
        uses = (2 * step + OF_V) // STAGES
    return place, barrier, uses & 1


@gluon.jit
def release(barrier, is_shared):
    """Let go of a buffer or step: once of two times if another warpgroup reads it too, else twice.

    The count of an arrival has to be known to the compiler.
    """
    if is_shared:
        mbarrier.arrive(barrier, count=1)
    else:
        mbarrier.arrive(barrier, count=2)
