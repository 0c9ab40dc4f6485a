"""The loading warps where K and V are fp8: bytes are copied far ahead, and widened into the ring.

The computing warpgroups find there what they find of any other pool, but V as fp16, which holds
all that fp8 does and leaves the weights more bits than bf16. Between memory and the ring a step
waits among the `AHEAD` last ones that were copied, in shared memory too; a turn of the inner loop
stores the oldest of these and copies the next.
"""

from __future__ import annotations

from triton import language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from sglang_codec.kernels.hopper.loader import find, load_queries, slots_of
from sglang_codec.kernels.hopper.ring import place_of, query_buffers
from sglang_codec.kernels.hopper.rows import (
    LOADING_WARPS,
    ROWS,
    computing_warpgroups,
    copied_from,
    held_by,
    loading_layout,
    pool_width,
    step_tokens,
)
from sglang_codec.kernels.hopper.walk import BUNDLE, LARGE, task_of, walk_of
from sglang_codec.kernels.hopper.warp_roles import role_barrier


@gluon.jit
def load_bytes(given, ring, slot, kv_head, VARIANT: gl.constexpr):
    """The role of the loading warps."""
    COLUMNS: gl.constexpr = VARIANT.VALUE_COLUMNS
    STEP: gl.constexpr = step_tokens(VARIANT.CLASSES)
    AHEAD: gl.constexpr = VARIANT.AHEAD
    BUFFERS: gl.constexpr = query_buffers(COLUMNS, COLUMNS, VARIANT.STAGES)
    WIDTH: gl.constexpr = pool_width(COLUMNS, VARIANT.EXPONENT)
    of_queries: gl.constexpr = loading_layout(COLUMNS, [1, 8])
    query_rows: gl.constexpr = gl.SliceLayout(1, of_queries)
    of_bytes: gl.constexpr = loading_layout(WIDTH, [1, 16])
    rows: gl.constexpr = gl.SliceLayout(1, of_bytes)
    line: gl.constexpr = gl.BlockedLayout([1], [32], [LOADING_WARPS], [0])
    tile_row = held_by(gl.arange(0, ROWS, query_rows), COLUMNS, ROWS)
    held = held_by(gl.arange(0, STEP, rows), WIDTH, STEP)
    entry = held_by(gl.arange(0, STEP, line), WIDTH, STEP)
    query_dim = gl.arange(0, COLUMNS, gl.SliceLayout(0, of_queries))
    dim = gl.arange(0, COLUMNS, gl.SliceLayout(0, of_bytes))
    k_head_ptr = given.k_ptr + kv_head.to(gl.int64) * given.k_head_stride
    v_head_ptr = given.v_ptr + kv_head.to(gl.int64) * given.v_head_stride

    walk = walk_of(given, slot, VARIANT)
    task = task_of(walk, 0, VARIANT)
    task1 = task_of(walk, 1, VARIANT)
    found = find(given, task, query_rows, rows, VARIANT)
    turns = 0  # of the inner loop so far
    stored = 0  # steps
    steps = 0  # which of the last turns copied one: a bit each, the last turn's is the lowest
    used = 0  # query buffers so far
    # turns after the tasks that had the latest four of them
    end0 = -AHEAD
    end1 = -AHEAD
    end2 = -AHEAD
    end3 = -AHEAD
    # a last turn for what is still to be stored
    for turn in range(walk.total + 1):
        found1 = find(given, task1, query_rows, rows, VARIANT)
        task2 = task_of(walk, turn + 2, VARIANT)

        # a buffer is let go of when the steps of its task are stored: first turns that copy none
        idle = AHEAD - 1
        if turn < walk.total:
            before = end1 if BUFFERS == 2 else end3
            if BUFFERS > 2 and task.kind == LARGE:
                before = end2
            idle = gl.maximum(before + AHEAD - 1 - turns, 0)
        elif VARIANT.EARLY_LAUNCH:
            # not before: programs that find room early would get more than their share of the work
            tl.extra.cuda.gdc_launch_dependents()
        at = found.slots
        # `idle` counts in the body too: of what is handed on from task to task for the bounds of a
        # loop alone, Triton 3.6 and 3.7 take nothing with them
        for nth in range(idle + gl.maximum((task.kv_len + STEP - 1) // STEP, 1)):
            start = (nth - idle) * STEP
            # before all that takes time: what is handed on is waited for at the end of the turn
            here = at
            at = slots_of(found.index, gl.maximum(start + STEP, 0), rows, WIDTH, STEP)
            if ((steps >> (AHEAD - 1)) & 1) == 1:
                async_copy.wait_group(AHEAD - 1)
                _store_step(ring, turns % AHEAD, stored, VARIANT)
                stored += 1
            if (start == 0) & (turn < walk.total):
                load_queries(
                    given, ring, task, found.low, tile_row, kv_head, used, query_dim, VARIANT
                )
                used += 1
                if task.kind == LARGE:
                    high = ROWS + tile_row
                    load_queries(
                        given, ring, task, found.high, high, kv_head, used, query_dim, VARIANT
                    )
                    used += 1

            is_step = (start >= 0) & (start < task.kv_len)
            is_copied = is_step & (start + held < task.kv_len)
            if VARIANT.WINDOW:
                # nor what all rows of the tile have left: it may be another request's
                is_copied = is_copied & (start + held >= task.window[0])
            place = turns % AHEAD
            if task.kind == BUNDLE:
                async_copy.async_copy_global_to_shared(
                    ring.staged[1].index(place),
                    given.bundle_readers_ptr + task.kv_start + start + entry,
                    mask=is_step & (start + entry < task.kv_len),
                )
            # beyond the end nothing is loaded: zeros, so a weight of zero never meets a NaN
            async_copy.async_copy_global_to_shared(
                ring.staged[0].index(2 * place),
                copied_from(k_head_ptr, here, given.k_slot_stride, dim),
                mask=is_copied[:, None],
            )
            async_copy.async_copy_global_to_shared(
                ring.staged[0].index(2 * place + 1),
                copied_from(v_head_ptr, here, given.v_slot_stride, dim),
                mask=is_copied[:, None],
            )
            async_copy.commit_group()
            steps = steps << 1 | is_step.to(gl.int32)
            turns += 1

        end0, end1, end2, end3 = turns, end0, end1, end2
        if task.kind == LARGE:
            end1, end2, end3 = turns, end1, end2
        task, task1, found = task1, task2, found1


@gluon.jit
def _store_step(ring, at, step, VARIANT: gl.constexpr):
    """Put K and V of a step into the ring, and who sees its tokens; `at`: where their bytes are."""
    line: gl.constexpr = gl.BlockedLayout([1], [32], [LOADING_WARPS], [0])
    layout: gl.constexpr = loading_layout(VARIANT.VALUE_COLUMNS, [1, 8])
    k_place, of_k, k_uses = place_of(step, 0, VARIANT)
    v_place, of_v, v_uses = place_of(step, 1, VARIANT)
    k_bytes = ring.staged[0].index(2 * at).load(layout)
    v_bytes = ring.staged[0].index(2 * at + 1).load(layout)
    k = _widened(k_bytes, ring.kv.dtype, VARIANT)
    mbarrier.wait(ring.empty.index(of_k), k_uses ^ 1)
    ring.readers.index(step % VARIANT.STAGES).store(ring.staged[1].index(at).load(line))
    ring.kv.index(k_place).store(k)
    v = _widened(v_bytes, ring.as_v.dtype, VARIANT)
    if computing_warpgroups(VARIANT.VALUE_COLUMNS) == 1:
        _hand_over(ring.k_full.index(of_k))
        mbarrier.wait(ring.empty.index(of_v), v_uses ^ 1)
        ring.as_v.index(v_place).store(v)
        _hand_over(ring.v_full.index(of_v))
    else:
        ring.as_v.index(v_place).store(v)
        _hand_over(ring.k_full.index(of_k))
        mbarrier.arrive(ring.v_full.index(of_v), count=1)


@gluon.jit
def _widened(values, dtype: gl.constexpr, VARIANT: gl.constexpr):
    """Bytes of fp8 as `dtype`: this GPU has an instruction for two at once, which makes fp16."""
    fp8: gl.constexpr = gl.float8e4nv if VARIANT.EXPONENT == 4 else gl.float8e5
    values = values.to(fp8, bitcast=True).to(gl.float16)
    if dtype != gl.float16:
        # by way of fp32, since from fp16 to bf16 a multiprocessor converts 16 values a cycle
        values = values.to(gl.float32).to(dtype)
    return values


@gluon.jit
def _hand_over(full):
    """Say that all have stored; whose matrix products read it puts the fence between."""
    role_barrier()
    mbarrier.arrive(full, count=1)
