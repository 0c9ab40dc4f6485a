"""What the roles hand each other: query buffers and a ring of KV steps, with their barriers."""

from __future__ import annotations

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from sglang_codec.kernels.hopper.rows import (
    LOADING_WARPS,
    ROWS,
    computing_warpgroups,
    rest_columns,
    step_tokens,
)


@gluon.constexpr_function
def query_buffers(key_dim, columns, stages):
    """Buffers of 64 query rows: a large tile takes two; beside 256 columns, or four steps with 192
    of K, no more fit."""
    is_full = columns > 128 or (rest_columns(key_dim, columns) > 0 and stages > 3)
    return 2 if is_full else 4


@gluon.constexpr_function
def kv_places(columns, stages):
    """Places for K or V of a step: where they are wide, `stages` counts these and not steps."""
    return 2 * stages if computing_warpgroups(columns) == 2 else stages


class Ring(NamedTuple):
    """Shared memory, and barriers of as many places or buffers.

    Full when the copies of every loading thread have come, or one of them says that all have
    stored what was fp8. Empty when the computing warpgroups have
    let go: two of them of a whole step, one alone of K and of V, each as soon as it is read; so
    their barriers are a step's or, K's and V's in turn, a place's (`place_of`). `handed` when a
    warpgroup has put its state over a step.
    """

    q: Any  # [query_buffers, 64, D] with the columns D of V
    kv: Any  # [kv_places, tokens of a step, D]
    as_v: Any  # what it is where a place holds V: with an fp8 pool fp16
    rest: Any  # of Q and of K, as many, of rest_columns: what is behind D, if any
    readers: Any  # [STAGES, tokens] int32: of a bundle, who sees each token of a step
    staged: Any  # K and V that are fp8, in turn, [2 AHEAD, tokens, D] uint8, and their `readers`
    q_full: Any
    q_empty: Any
    k_full: Any
    v_full: Any
    empty: Any
    handed: Any


@gluon.jit
def make_ring(dtype: gl.constexpr, VARIANT: gl.constexpr):
    """The ring of a program, all of it empty."""
    COLUMNS: gl.constexpr = VARIANT.VALUE_COLUMNS
    REST: gl.constexpr = rest_columns(VARIANT.KEY_DIM, COLUMNS)
    STAGES: gl.constexpr = VARIANT.STAGES
    BUFFERS: gl.constexpr = query_buffers(VARIANT.KEY_DIM, COLUMNS, STAGES)
    STEP: gl.constexpr = step_tokens(VARIANT.CLASSES)
    of_queries: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, COLUMNS], dtype)
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([STEP, COLUMNS], dtype)
    barrier_layout: gl.constexpr = mbarrier.MBarrierLayout()
    PAIRS: gl.constexpr = computing_warpgroups(COLUMNS) == 2
    PLACES: gl.constexpr = kv_places(COLUMNS, STAGES)
    kv = gl.allocate_shared_memory(dtype, [PLACES, STEP, COLUMNS], layout)
    q = gl.allocate_shared_memory(dtype, [BUFFERS, ROWS, COLUMNS], of_queries)
    rest = ()
    if REST:
        of_rest: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, REST], dtype)
        k_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([STEP, REST], dtype)
        q_rest = gl.allocate_shared_memory(dtype, [BUFFERS, ROWS, REST], of_rest)
        k_rest = gl.allocate_shared_memory(dtype, [STAGES, STEP, REST], k_layout)
        rest = (q_rest, k_rest)
    line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    readers = gl.allocate_shared_memory(gl.int32, [STAGES, STEP], line)
    as_v = kv
    staged = ()
    if VARIANT.EXPONENT:
        of_v: gl.constexpr = gl.NVMMASharedLayout.get_default_for([STEP, COLUMNS], gl.float16)
        as_v = kv._reinterpret(gl.float16, [PLACES, STEP, COLUMNS], of_v)
        in_order: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
        size: gl.constexpr = [2 * VARIANT.AHEAD, STEP, COLUMNS]
        staged = (
            gl.allocate_shared_memory(gl.uint8, size, in_order),
            gl.allocate_shared_memory(gl.int32, [VARIANT.AHEAD, STEP], line),
        )
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
    return Ring(q, kv, as_v, rest, readers, staged, *barriers)


@gluon.jit
def place_of(step, OF_V: gl.constexpr, VARIANT: gl.constexpr):
    """Where K or V of a step is, which barriers are its own, and the parity of their uses."""
    STAGES: gl.constexpr = VARIANT.STAGES
    if computing_warpgroups(VARIANT.VALUE_COLUMNS) == 2:
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
