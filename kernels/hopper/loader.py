"""The loading warps: the queries and every KV step of every task of the slot, in order.

They walk ahead of the computing warpgroups, across the ends of tasks, as far as the ring has room.
What a task needs to know is loaded two tasks ahead, where it needs to look one task ahead.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from triton import language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from sglang_codec.kernels.columns import of_width
from sglang_codec.kernels.hopper.ring import place_of, query_buffers
from sglang_codec.kernels.hopper.rows import (
    LOADING_WARPS,
    ROWS,
    common_factor,
    computing_warpgroups,
    copied_by,
    copied_columns,
    copied_from,
    held_by,
    loading_layout,
    pool_width,
    rest_columns,
    step_tokens,
    to_rows,
)
from sglang_codec.kernels.hopper.walk import BUNDLE, KEPT, LARGE, batch_rows, task_of, walk_of
from sglang_codec.kernels.query_rows import head_of, token_row


class Found(NamedTuple):
    """What the copies of a task need to know before its first one."""

    index: Any  # where its KV slots are listed
    slots: Any  # those of the first step
    low: Any  # requests of its first 64 query rows
    high: Any  # of the next 64


@gluon.jit
def load(given, ring, slot, kv_head, VARIANT: gl.constexpr):
    """The role of the loading warps."""
    COLUMNS: gl.constexpr = VARIANT.VALUE_COLUMNS
    COPIED: gl.constexpr = copied_columns(VARIANT.KEY_DIM, COLUMNS)
    REST: gl.constexpr = rest_columns(VARIANT.KEY_DIM, COLUMNS)
    STEP: gl.constexpr = step_tokens(VARIANT.CLASSES)
    STAGES: gl.constexpr = VARIANT.STAGES
    ALONE: gl.constexpr = computing_warpgroups(COLUMNS) == 1
    layout: gl.constexpr = loading_layout(COPIED, [1, 8])
    rows: gl.constexpr = gl.SliceLayout(1, layout)
    query = held_by(gl.arange(0, ROWS, rows), COPIED, ROWS)
    held = held_by(gl.arange(0, STEP, rows), COPIED, STEP)
    entry_row = gl.arange(0, STEP, gl.BlockedLayout([1], [32], [LOADING_WARPS], [0]))
    entry = held_by(entry_row, COPIED, STEP)
    dim = gl.arange(0, COLUMNS, gl.SliceLayout(0, layout))
    k_head_ptr = given.k_ptr + kv_head.to(gl.int64) * given.k_head_stride
    v_head_ptr = given.v_ptr + kv_head.to(gl.int64) * given.v_head_stride

    walk = walk_of(given, slot, VARIANT)
    task = task_of(walk, 0, VARIANT)
    task1 = task_of(walk, 1, VARIANT)
    found = find(given, task, rows, rows, VARIANT)
    step = 0
    used = 0  # query buffers so far
    for turn in range(walk.total):
        found1 = find(given, task1, rows, rows, VARIANT)
        task2 = task_of(walk, turn + 2, VARIANT)

        load_queries(given, ring, task, found.low, query, kv_head, used, dim, VARIANT)
        used += 1
        if task.kind == LARGE:
            load_queries(given, ring, task, found.high, ROWS + query, kv_head, used, dim, VARIANT)
            used += 1

        at = found.slots
        for start in range(0, task.kv_len, STEP):
            k_place, of_k, k_uses = place_of(step, 0, VARIANT)
            v_place, of_v, v_uses = place_of(step, 1, VARIANT)
            within = (start + held < task.kv_len)[:, None]
            if VARIANT.WINDOW:
                # nor what all rows of the tile have left: it may be another request's
                within = within & (start + held >= task.window[0])[:, None]
            here = at
            at = slots_of(found.index, start + STEP, rows, COPIED, STEP)
            mbarrier.wait(ring.empty.index(of_k), k_uses ^ 1)
            if task.kind == BUNDLE:
                async_copy.async_copy_global_to_shared(
                    ring.readers.index(step % STAGES),
                    given.bundle_readers_ptr + task.kv_start + start + entry,
                    mask=start + entry < task.kv_len,
                )
            # beyond the end nothing is loaded: zeros, so a weight of zero never meets a NaN
            async_copy.async_copy_global_to_shared(
                ring.kv.index(k_place),
                copied_from(k_head_ptr, here, given.k_slot_stride, dim),
                mask=of_width(within, dim[None, :], VARIANT.KEY_DIM),
            )
            if REST:
                rest = gl.arange(0, REST, dim.type.layout)
                async_copy.async_copy_global_to_shared(
                    ring.rest[1].index(step % STAGES),
                    copied_from(k_head_ptr + COLUMNS, here, given.k_slot_stride, rest),
                    mask=of_width(within, rest[None, :], VARIANT.KEY_DIM - COLUMNS),
                )
            async_copy.mbarrier_arrive(ring.k_full.index(of_k), increment_count=False)
            if ALONE:
                mbarrier.wait(ring.empty.index(of_v), v_uses ^ 1)
            async_copy.async_copy_global_to_shared(
                ring.kv.index(v_place),
                copied_from(v_head_ptr, here, given.v_slot_stride, dim),
                mask=of_width(within, dim[None, :], VARIANT.VALUE_DIM),
            )
            async_copy.mbarrier_arrive(ring.v_full.index(of_v), increment_count=False)
            step += 1

        task, task1, found = task1, task2, found1
    if VARIANT.EARLY_LAUNCH:
        # not before: programs that find room early would get more than their share of the work
        tl.extra.cuda.gdc_launch_dependents()


@gluon.jit
def find(given, task, query_rows: gl.constexpr, rows: gl.constexpr, VARIANT: gl.constexpr):
    """Where a task's slots are, those of its first step, and its requests."""
    COPIED: gl.constexpr = copied_columns(VARIANT.KEY_DIM, VARIANT.VALUE_COLUMNS)
    WIDTH: gl.constexpr = pool_width(COPIED, VARIANT.EXPONENT)
    index = given.kv_index_ptr + task.kv_start
    if task.kind == BUNDLE:
        index = given.bundle_index_ptr + task.kv_start
    slots = slots_of(index, 0, rows, WIDTH, step_tokens(VARIANT.CLASSES))
    low = _loaded_rows(given, task, 0, query_rows, VARIANT)
    high = _loaded_rows(given, task, ROWS, query_rows, VARIANT)
    return Found(index, slots, low, high)


@gluon.jit
def slots_of(index, start, rows: gl.constexpr, WIDTH: gl.constexpr, STEP: gl.constexpr):
    """KV slots of the step of a task that begins at token `start`; any behind the task's end."""
    together: gl.constexpr = loading_layout(WIDTH, [copied_by(WIDTH, STEP)[1], 1])
    token = gl.arange(0, STEP, gl.SliceLayout(1, together))
    return to_rows(gl.load(index + start + token, eviction_policy=KEPT), WIDTH, rows)


@gluon.jit
def _loaded_rows(given, task, base: gl.constexpr, rows: gl.constexpr, VARIANT: gl.constexpr):
    """`batch_rows` of the 64 rows from `base` on, for copies: no thread loads a query twice."""
    COPIED: gl.constexpr = copied_columns(VARIANT.KEY_DIM, VARIANT.VALUE_COLUMNS)
    OF_THREAD: gl.constexpr = copied_by(COPIED, ROWS)[1]
    SAME: gl.constexpr = common_factor(VARIANT.GROUP, OF_THREAD)
    pairs: gl.constexpr = loading_layout(COPIED, [OF_THREAD // SAME, SAME])
    nth = gl.arange(0, ROWS // SAME, gl.SliceLayout(1, pairs))
    row = batch_rows(given, task, base + SAME * nth, VARIANT)
    again = gl.zeros([SAME], gl.int32, gl.SliceLayout(0, pairs))
    return to_rows((row[:, None] + again[None, :]).reshape([ROWS]), COPIED, rows)


@gluon.jit
def load_queries(given, ring, task, row, tile_row, kv_head, nth, dim, VARIANT: gl.constexpr):
    """Copy 64 query rows of a task, of requests `row`, to the nth use of a buffer."""
    COLUMNS: gl.constexpr = VARIANT.VALUE_COLUMNS
    REST: gl.constexpr = rest_columns(VARIANT.KEY_DIM, COLUMNS)
    BUFFERS: gl.constexpr = query_buffers(VARIANT.KEY_DIM, COLUMNS, VARIANT.STAGES)
    buffer = nth % BUFFERS
    mbarrier.wait(ring.q_empty.index(buffer), ((nth // BUFFERS) & 1) ^ 1)
    head = head_of(tile_row, kv_head, VARIANT)
    row = token_row(row, tile_row, VARIANT)
    valid = (tile_row // VARIANT.GROUP < task.queries)[:, None]
    async_copy.async_copy_global_to_shared(
        ring.q.index(buffer),
        copied_from(given.q_ptr, row, given.q_row_stride, dim)
        + (head * given.q_head_stride)[:, None],
        mask=of_width(valid, dim[None, :], VARIANT.KEY_DIM),
    )
    if REST:
        rest = gl.arange(0, REST, dim.type.layout)
        async_copy.async_copy_global_to_shared(
            ring.rest[0].index(buffer),
            copied_from(given.q_ptr + COLUMNS, row, given.q_row_stride, rest)
            + (head * given.q_head_stride)[:, None],
            mask=of_width(valid, rest[None, :], VARIANT.KEY_DIM - COLUMNS),
        )
    async_copy.mbarrier_arrive(ring.q_full.index(buffer), increment_count=False)
