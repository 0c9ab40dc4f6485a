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

    Full when the copies of every loading thread have come; empty when the computing warpgroups have
    let go: two of them of K and V of a step at once, in V's place, one alone of each as soon as it
    is read. `handed` when a warpgroup has put its state over a step.
    """

    q: Any  # [query_buffers(D), 64, D]
    kv: Any  # [kv_places(D, STAGES), 64, D]
    readers: Any  # [STAGES, 64] int32: of a bundle, who sees each token of a step
    q_full: Any
    q_empty: Any
    full: Any
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
    PLACES: gl.constexpr = kv_places(HEAD_DIM, STAGES)
    kv = gl.allocate_shared_memory(dtype, [PLACES, ROWS, HEAD_DIM], layout)
    q = gl.allocate_shared_memory(dtype, [BUFFERS, ROWS, HEAD_DIM], layout)
    line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    readers = gl.allocate_shared_memory(gl.int32, [STAGES, ROWS], line)
    full = gl.allocate_shared_memory(gl.int64, [PLACES, 1], barrier_layout)
    empty = gl.allocate_shared_memory(gl.int64, [PLACES, 1], barrier_layout)
    handed = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    q_full = gl.allocate_shared_memory(gl.int64, [BUFFERS, 1], barrier_layout)
    q_empty = gl.allocate_shared_memory(gl.int64, [BUFFERS, 1], barrier_layout)
    for place in gl.static_range(PLACES):
        mbarrier.init(full.index(place), count=32 * LOADING_WARPS)
        mbarrier.init(empty.index(place), count=2)
    for stage in gl.static_range(STAGES):
        mbarrier.init(handed.index(stage), count=1)
    for buffer in gl.static_range(BUFFERS):
        mbarrier.init(q_full.index(buffer), count=32 * LOADING_WARPS)
        mbarrier.init(q_empty.index(buffer), count=2)
    return Ring(q, kv, readers, q_full, q_empty, full, empty, handed)


@gluon.jit
def place_of(step, OF_V: gl.constexpr, VARIANT: gl.constexpr):
    """Where K or V of a step is, and the parity of its uses so far."""
    STAGES: gl.constexpr = VARIANT.STAGES
    if computing_warpgroups(VARIANT.HEAD_DIM) == 2:
        place = 2 * (step % STAGES) + OF_V
        uses = step // STAGES
    else:
        place = (2 * step + OF_V) % STAGES
        uses = (2 * step + OF_V) // STAGES
    return place, uses & 1


@gluon.jit
def release(barrier, is_shared):
    """Let go of a buffer or step: once of two times if another warpgroup reads it too, else twice.

    The count of an arrival has to be known to the compiler.
    """
    if is_shared:
        mbarrier.arrive(barrier, count=1)
    else:
        mbarrier.arrive(barrier, count=2)
