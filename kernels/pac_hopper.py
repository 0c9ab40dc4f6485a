"""PAC for Hopper: warps that only load, and two warpgroups that only compute.

The loading warps walk the tasks of a slot ahead of the computing ones, across the ends of tasks, so
that memory never waits for a softmax, a store or the start of the next task. The KV steps pass
through one ring of shared memory. The two computing warpgroups take the steps in turn; where a task
has more query rows than one of them holds, both take all of its steps, each for its own rows.
"""

from __future__ import annotations

from typing import Any

from triton import language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from sglang_codec.kernels.launch import LaunchConfig
from sglang_codec.kernels.records import SLOT_INTS, TASK_INTS
from sglang_codec.kernels.warp_roles import role_barrier, specialize

SMALL, LARGE, BUNDLE = gl.constexpr(0), gl.constexpr(1), gl.constexpr(2)  # the classes of tasks
ROWS = gl.constexpr(64)  # query rows of a computing warpgroup
LOADING_WARPS = gl.constexpr(4)
COLUMNS = gl.constexpr(32)  # of the output that a bundle's repair computes at a time
ALIGNED = gl.constexpr(4)  # as planning/plan.py has it
QUERY_BUFFERS = gl.constexpr(4)  # of 64 rows
# in L2, for what every layer or POR reads again: behind the KV stream DRAM takes many times as long
KEPT = gl.constexpr("evict_last")


@gluon.constexpr_function
def _copied_by(head_dim):
    """Rows of a copy that one instruction of the loading warps writes, and those of each thread."""
    rows = 32 * LOADING_WARPS.value // (head_dim // 8)  # 16 bytes a thread
    return rows, ROWS.value // rows


@gluon.constexpr_function
def _common_factor(group, rows):
    """The largest power of two that divides both."""
    return min(group & -group, rows)


@gluon.jit
def _held_by(row, HEAD_DIM: gl.constexpr):
    """Which of 64 query rows, or of 64 tokens of a step, a row of shared memory holds.

    A loading thread copies neighbours, to know them from few loads, but writes them as far apart as
    leaves its place in the swizzled rows the same.
    """
    AT_ONCE: gl.constexpr = _copied_by(HEAD_DIM)[0]
    OF_THREAD: gl.constexpr = _copied_by(HEAD_DIM)[1]
    return row % AT_ONCE * OF_THREAD + row // AT_ONCE


@gluon.jit
def _to_rows(held, HEAD_DIM: gl.constexpr, layout: gl.constexpr):
    """What belongs to 64 queries or tokens, neighbours in a thread, as rows of shared memory."""
    AT_ONCE: gl.constexpr = _copied_by(HEAD_DIM)[0]
    OF_THREAD: gl.constexpr = _copied_by(HEAD_DIM)[1]
    held = held.reshape([AT_ONCE, OF_THREAD]).permute([1, 0]).reshape([ROWS])
    return gl.convert_layout(held, layout, assert_trivial=True)


@gluon.jit
def _tasks_of(plan_ptr, slot, NUM_CLASSES: gl.constexpr):
    """How many tasks a slot has, and what is to be added to a task's turn to get its number.

    Large tiles come first, then bundles, then small tiles.
    """
    bounds = plan_ptr + slot * SLOT_INTS
    small = gl.load(bounds, eviction_policy=KEPT)
    small_end = gl.load(bounds + 1, eviction_policy=KEPT)
    large = gl.load(bounds + 2, eviction_policy=KEPT)
    large_end = gl.load(bounds + 3, eviction_policy=KEPT)
    bundle = small
    bundle_end = small
    if NUM_CLASSES == 3:
        bundle = gl.load(bounds + 4, eviction_policy=KEPT)
        bundle_end = gl.load(bounds + 5, eviction_policy=KEPT)
    last_large = large_end - large
    last_bundle = last_large + bundle_end - bundle
    total = last_bundle + small_end - small
    to_class = (large, bundle - last_large, small - last_bundle)
    return total, last_large, last_bundle, to_class


@gluon.jit
def _record_of(plan_ptr, tasks_offset, turn, tasks):
    """Class and fields of the task of a turn; of no tokens and no queries beyond the last."""
    total, last_large, last_bundle, to_class = tasks
    is_task = turn < total
    kind = SMALL
    task = turn + to_class[2]
    if turn < last_large:
        kind = LARGE
        task = turn + to_class[0]
    elif turn < last_bundle:
        kind = BUNDLE
        task = turn + to_class[1]
    record = plan_ptr + tasks_offset + task * TASK_INTS
    # the planner aligns it: so many slots can be loaded at once
    kv_start = gl.load(record, mask=is_task, other=0, eviction_policy=KEPT) // ALIGNED * ALIGNED
    kv_len = gl.load(record + 1, mask=is_task, other=0, eviction_policy=KEPT)
    first = gl.load(record + 2, mask=is_task, other=0, eviction_policy=KEPT)
    queries = gl.load(record + 3, mask=is_task, other=0, eviction_policy=KEPT)
    part = gl.load(record + 4, mask=is_task, other=0, eviction_policy=KEPT)
    return kind, kv_start, kv_len, first, queries, part


@gluon.jit
def _batch_rows(plan_ptr, order_offset, tile_row, first, queries, GROUP: gl.constexpr):
    """Batch rows of some rows of a query tile; 0 where there is none."""
    query = tile_row // GROUP
    return gl.load(
        plan_ptr + order_offset + first + query, mask=query < queries, other=0, eviction_policy=KEPT
    )


@gluon.jit
def _loaded_rows(
    plan_ptr,
    order_offset,
    base: gl.constexpr,
    first,
    queries,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    layout: gl.constexpr,
):
    """`_batch_rows` of the 64 rows from `base` on, for copies: no thread loads a query twice."""
    AT_ONCE: gl.constexpr = _copied_by(HEAD_DIM)[0]
    OF_THREAD: gl.constexpr = _copied_by(HEAD_DIM)[1]
    SAME: gl.constexpr = _common_factor(GROUP, OF_THREAD)
    pairs: gl.constexpr = gl.BlockedLayout(
        [OF_THREAD // SAME, SAME],
        [AT_ONCE // LOADING_WARPS, 32 * LOADING_WARPS // AT_ONCE],
        [LOADING_WARPS, 1],
        [1, 0],
    )
    nth = gl.arange(0, ROWS // SAME, gl.SliceLayout(1, pairs))
    row = _batch_rows(plan_ptr, order_offset, base + SAME * nth, first, queries, GROUP)
    again = gl.zeros([SAME], gl.int32, gl.SliceLayout(0, pairs))
    return _to_rows((row[:, None] + again[None, :]).reshape([ROWS]), HEAD_DIM, layout)


@gluon.jit
def _copied_from(heads_ptr, row, row_stride, dim):
    """Addresses ``[64, D]`` of rows that lie `row_stride` elements apart.

    One multiplication each, because it adds bytes: 32 bits times 32 bits to a 64-bit address.
    """
    dtype: gl.constexpr = heads_ptr.dtype.element_ty
    stride = (row_stride * (dtype.primitive_bitwidth // 8)).to(gl.uint32).to(gl.uint64)
    offset = row.to(gl.uint32).to(gl.uint64) * stride
    in_bytes = (heads_ptr + dim).to(tl.pointer_type(gl.int8), bitcast=True)
    return (in_bytes[None, :] + offset[:, None]).to(tl.pointer_type(dtype), bitcast=True)


@gluon.jit
def _load_queries(
    q_ring, barriers, q_ptr, strides, row, tile_row, queries, kv_head, nth, dim, GROUP: gl.constexpr
):
    """Copy 64 query rows of a task to the nth use of a buffer."""
    q_full, q_empty = barriers
    q_row_stride, q_head_stride = strides
    buffer = nth % QUERY_BUFFERS
    mbarrier.wait(q_empty.index(buffer), ((nth // QUERY_BUFFERS) & 1) ^ 1)
    head = kv_head * GROUP + tile_row % GROUP
    async_copy.async_copy_global_to_shared(
        q_ring.index(buffer),
        _copied_from(q_ptr, row, q_row_stride, dim) + (head * q_head_stride)[:, None],
        mask=(tile_row // GROUP < queries)[:, None],
    )
    async_copy.mbarrier_arrive(q_full.index(buffer), increment_count=False)


@gluon.jit
def _slots(index, start, HEAD_DIM: gl.constexpr, layout: gl.constexpr):
    """KV slots of the step of a task that begins at token `start`; any behind the task's end."""
    AT_ONCE: gl.constexpr = _copied_by(HEAD_DIM)[0]
    OF_THREAD: gl.constexpr = _copied_by(HEAD_DIM)[1]
    together: gl.constexpr = gl.BlockedLayout(
        [OF_THREAD, 1],
        [AT_ONCE // LOADING_WARPS, 32 * LOADING_WARPS // AT_ONCE],
        [LOADING_WARPS, 1],
        [1, 0],
    )
    token = gl.arange(0, ROWS, gl.SliceLayout(1, together))
    return _to_rows(gl.load(index + start + token, eviction_policy=KEPT), HEAD_DIM, layout)


@gluon.jit
def _first_slots(
    kind, kv_index_ptr, bundle_index_ptr, kv_start, HEAD_DIM: gl.constexpr, layout: gl.constexpr
):
    """Where a task's KV slots are listed, and those of its first step."""
    index = kv_index_ptr + kv_start
    if kind == BUNDLE:
        index = bundle_index_ptr + kv_start
    return index, _slots(index, 0, HEAD_DIM, layout)


@gluon.jit
def _load(
    rings,
    barriers,
    pointers,
    strides,
    offsets,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BLOCK_KV: gl.constexpr,
    STAGES: gl.constexpr,
    NUM_CLASSES: gl.constexpr,
    EARLY_LAUNCH: gl.constexpr,
):
    """The loading warps: the queries and every KV step of every task of the slot, in order.

    What a task needs to know is loaded two tasks ahead, where it needs to look one task ahead.
    """
    q_ring, kv_ring, readers_ring = rings
    q_full, q_empty, k_full, v_full, empty, handed = barriers
    q_ptr, k_ptr, v_ptr, plan_ptr, kv_index_ptr, bundle_index_ptr, bundle_readers_ptr = pointers
    q_row_stride, q_head_stride, k_slot_stride, k_head_stride, v_slot_stride, v_head_stride = (
        strides
    )
    order_offset, tasks_offset, slot, kv_head = offsets
    at_once: gl.constexpr = _copied_by(HEAD_DIM)[0]
    layout: gl.constexpr = gl.BlockedLayout(
        [1, 8],
        [at_once // LOADING_WARPS, 32 * LOADING_WARPS // at_once],
        [LOADING_WARPS, 1],
        [1, 0],
    )
    rows: gl.constexpr = gl.SliceLayout(1, layout)
    held = _held_by(gl.arange(0, ROWS, rows), HEAD_DIM)
    entry_row = gl.arange(0, ROWS, gl.BlockedLayout([1], [32], [LOADING_WARPS], [0]))
    entry = _held_by(entry_row, HEAD_DIM)
    dim = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, layout))
    k_head_ptr = k_ptr + kv_head.to(gl.int64) * k_head_stride
    v_head_ptr = v_ptr + kv_head.to(gl.int64) * v_head_stride

    tasks = _tasks_of(plan_ptr, slot, NUM_CLASSES)
    total = tasks[0]
    kind, kv_start, kv_len, first, queries, part = _record_of(plan_ptr, tasks_offset, 0, tasks)
    kind1, kv_start1, kv_len1, first1, queries1, part1 = _record_of(
        plan_ptr, tasks_offset, 1, tasks
    )
    index, at = _first_slots(kind, kv_index_ptr, bundle_index_ptr, kv_start, HEAD_DIM, rows)
    low = _loaded_rows(plan_ptr, order_offset, 0, first, queries, GROUP, HEAD_DIM, rows)
    high = _loaded_rows(plan_ptr, order_offset, ROWS, first, queries, GROUP, HEAD_DIM, rows)
    step = 0
    used = 0  # query buffers so far
    for turn in range(total):
        index1, at1 = _first_slots(kind1, kv_index_ptr, bundle_index_ptr, kv_start1, HEAD_DIM, rows)
        low1 = _loaded_rows(plan_ptr, order_offset, 0, first1, queries1, GROUP, HEAD_DIM, rows)
        high1 = _loaded_rows(plan_ptr, order_offset, ROWS, first1, queries1, GROUP, HEAD_DIM, rows)
        kind2, kv_start2, kv_len2, first2, queries2, part2 = _record_of(
            plan_ptr, tasks_offset, turn + 2, tasks
        )

        q_barriers = (q_full, q_empty)
        q_strides = (q_row_stride, q_head_stride)
        _load_queries(
            q_ring, q_barriers, q_ptr, q_strides, low, held, queries, kv_head, used, dim, GROUP
        )
        used += 1
        if kind == LARGE:
            _load_queries(
                q_ring,
                q_barriers,
                q_ptr,
                q_strides,
                high,
                ROWS + held,
                queries,
                kv_head,
                used,
                dim,
                GROUP,
            )
            used += 1

        for start in range(0, kv_len, BLOCK_KV):
            stage = step % STAGES
            within = (start + held < kv_len)[:, None]
            here = at
            at = _slots(index, start + BLOCK_KV, HEAD_DIM, rows)
            mbarrier.wait(empty.index(stage), ((step // STAGES) & 1) ^ 1)
            if kind == BUNDLE:
                async_copy.async_copy_global_to_shared(
                    readers_ring.index(stage),
                    bundle_readers_ptr + kv_start + start + entry,
                    mask=start + entry < kv_len,
                )
            # beyond the end nothing is loaded: zeros, so a weight of zero never meets a NaN
            async_copy.async_copy_global_to_shared(
                kv_ring.index(2 * stage),
                _copied_from(k_head_ptr, here, k_slot_stride, dim),
                mask=within,
            )
            async_copy.mbarrier_arrive(k_full.index(stage), increment_count=False)
            async_copy.async_copy_global_to_shared(
                kv_ring.index(2 * stage + 1),
                _copied_from(v_head_ptr, here, v_slot_stride, dim),
                mask=within,
            )
            async_copy.mbarrier_arrive(v_full.index(stage), increment_count=False)
            step += 1

        kind, kv_start, kv_len, queries = kind1, kv_start1, kv_len1, queries1
        index, at, low, high = index1, at1, low1, high1
        kind1, kv_start1, kv_len1, first1, queries1 = kind2, kv_start2, kv_len2, first2, queries2
    if EARLY_LAUNCH:
        # not before: programs that find room early would get more than their share of the work
        tl.extra.cuda.gdc_launch_dependents()


@gluon.jit
def _repair(
    pointers,
    strides,
    offsets,
    task,
    lse,
    qk_scale,
    num_qo_heads,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
):
    """Compute and store a bundle's output without matrix products, some columns at a time.

    Few registers, because what lives throughout the kernel would be spilled here otherwise.
    """
    (
        q_ptr,
        k_ptr,
        v_ptr,
        out_ptr,
        lse_ptr,
        partial_out_ptr,
        partial_lse_ptr,
        plan_ptr,
        bundle_index_ptr,
        bundle_readers_ptr,
    ) = pointers
    (
        q_row_stride,
        q_head_stride,
        k_slot_stride,
        k_head_stride,
        v_slot_stride,
        v_head_stride,
        out_row_stride,
        out_head_stride,
    ) = strides
    order_offset, tasks_offset, slot, kv_head = offsets
    kv_start, kv_len, first, queries, part = task
    dtype: gl.constexpr = k_ptr.dtype.element_ty
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])
    rows: gl.constexpr = gl.SliceLayout(1, layout)
    tile_row = _held_by(gl.arange(0, ROWS, rows), HEAD_DIM)
    column = gl.arange(0, COLUMNS, gl.SliceLayout(0, layout))
    query = tile_row // GROUP
    head = kv_head * GROUP + tile_row % GROUP
    valid = query < queries
    row = _batch_rows(plan_ptr, order_offset, tile_row, first, queries, GROUP).to(gl.int64)
    lse = gl.convert_layout(lse, rows)
    lse = gl.where(lse == -float("inf"), 0.0, lse)
    q_rows = q_ptr + row * q_row_stride + head * q_head_stride
    k_head_ptr = k_ptr + kv_head.to(gl.int64) * k_head_stride
    v_head_ptr = v_ptr + kv_head.to(gl.int64) * v_head_stride
    for begin in range(0, HEAD_DIM, COLUMNS):
        values = gl.zeros([ROWS, COLUMNS], gl.float32, layout)
        for own in range(kv_start, kv_start + kv_len):
            at = gl.load(bundle_index_ptr + own).to(gl.int64)
            readers = gl.load(bundle_readers_ptr + own)
            is_seen = (query >= (readers & 0xFFFF)) & (query < (readers >> 16))
            score = gl.zeros([ROWS], gl.float32, rows)
            for of_key in range(0, HEAD_DIM, COLUMNS):
                q = gl.load(
                    q_rows[:, None] + (of_key + column)[None, :], mask=valid[:, None], other=0.0
                )
                k = gl.load(k_head_ptr + at * k_slot_stride + of_key + column)
                score += gl.sum(q.to(gl.float32) * k.to(gl.float32)[None, :], 1)
            weight = gl.exp2(score * qk_scale - lse)
            v = gl.load(v_head_ptr + at * v_slot_stride + begin + column).to(gl.float32)
            values += gl.where(is_seen[:, None], weight[:, None] * v[None, :], 0.0)
        if part < 0:
            out_rows = out_ptr + row * out_row_stride + head * out_head_stride + begin
            gl.store(out_rows[:, None] + column[None, :], values.to(dtype), mask=valid[:, None])
        else:
            partial = (part + query).to(gl.int64) * num_qo_heads + head
            partial_rows = partial_out_ptr + partial * HEAD_DIM + begin
            gl.store(partial_rows[:, None] + column[None, :], values, mask=valid[:, None])


@gluon.jit
def _attend(
    rings,
    barriers,
    pointers,
    strides,
    offsets,
    qk_scale,
    num_qo_heads,
    WARPGROUP: gl.constexpr,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BLOCK_KV: gl.constexpr,
    STAGES: gl.constexpr,
    NUM_CLASSES: gl.constexpr,
    EXACT_WEIGHTS: gl.constexpr,
    WRITE_LSE: gl.constexpr,
):
    """One computing warpgroup: 64 query rows of every large tile, every other step of all else.

    Of a task whose steps both take, the one with the last step gets what the other has found, in
    the place of the other's last step in the ring, and stores.
    """
    q_ring, kv_ring, readers_ring = rings
    q_full, q_empty, k_full, v_full, empty, handed = barriers
    (
        q_ptr,
        k_ptr,
        v_ptr,
        out_ptr,
        lse_ptr,
        partial_out_ptr,
        partial_lse_ptr,
        plan_ptr,
        bundle_index_ptr,
        bundle_readers_ptr,
    ) = pointers
    (
        q_row_stride,
        q_head_stride,
        k_slot_stride,
        k_head_stride,
        v_slot_stride,
        v_head_stride,
        out_row_stride,
        out_head_stride,
    ) = strides
    order_offset, tasks_offset, slot, kv_head = offsets
    dtype: gl.constexpr = k_ptr.dtype.element_ty
    # the second product needs registers: half a step at a time
    TOKENS: gl.constexpr = BLOCK_KV // 2 if EXACT_WEIGHTS else BLOCK_KV
    qk_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TOKENS, 16])
    pv_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, pv_layout, 2)
    qk_rows: gl.constexpr = gl.SliceLayout(1, qk_layout)
    pv_rows: gl.constexpr = gl.SliceLayout(1, pv_layout)
    handed_layout: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    qk_row = _held_by(gl.arange(0, ROWS, qk_rows), HEAD_DIM)
    column = gl.arange(0, TOKENS, gl.SliceLayout(0, qk_layout))
    pv_row = _held_by(gl.arange(0, ROWS, pv_rows), HEAD_DIM)
    pv_dim = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, pv_layout))
    no_scores = gl.zeros([ROWS, TOKENS], gl.float32, qk_layout)
    # K and V of a step have room for 64 rows of fp32
    handed_ring = kv_ring._reinterpret(gl.float32, [STAGES, ROWS, HEAD_DIM], handed_layout)

    tasks = _tasks_of(plan_ptr, slot, NUM_CLASSES)
    total = tasks[0]
    kind, kv_start, kv_len, first, queries, part = _record_of(plan_ptr, tasks_offset, 0, tasks)
    step = 0
    used = 0  # query buffers so far
    shared = 0  # tasks so far of which both have computed a part
    for turn in range(total):
        kind1, kv_start1, kv_len1, first1, queries1, part1 = _record_of(
            plan_ptr, tasks_offset, turn + 1, tasks
        )
        is_both = kind == LARGE
        is_bundle = kind == BUNDLE
        steps = (kv_len + BLOCK_KV - 1) // BLOCK_KV
        base = 0
        own = (step + WARPGROUP) & 1
        stride = 2
        buffer = used % QUERY_BUFFERS
        q_phase = (used // QUERY_BUFFERS) & 1
        used += 1
        if is_both:
            base = WARPGROUP * ROWS
            own = 0
            stride = 1
            if WARPGROUP == 1:
                buffer = used % QUERY_BUFFERS
                q_phase = (used // QUERY_BUFFERS) & 1
            used += 1
        is_shared = (is_both == 0) & (steps > 1)
        # the last step is its own; without steps one of the two stores that nothing was found
        is_last = is_both | (((step + steps + 1 + WARPGROUP) & 1) == 0)
        if is_last | is_shared:
            row = _batch_rows(plan_ptr, order_offset, base + pv_row, first, queries, GROUP)
            query_qk = (base + qk_row) // GROUP
            running_max = gl.full([ROWS], -float("inf"), gl.float32, qk_rows)
            running_sum = gl.zeros([ROWS], gl.float32, qk_rows)
            accumulator = warpgroup_mma_init(gl.zeros([ROWS, HEAD_DIM], gl.float32, pv_layout))
            mbarrier.wait(q_full.index(buffer), q_phase)
            my_q = q_ring.index(buffer)
            last = (step + own) % STAGES  # stage of the step before
            for nth in range(own, steps, stride):
                my_step = step + nth
                stage = my_step % STAGES
                phase = (my_step // STAGES) & 1
                mbarrier.wait(k_full.index(stage), phase)
                fence_async_shared()
                for half in gl.static_range(BLOCK_KV // TOKENS):
                    k = kv_ring.index(2 * stage).slice(half * TOKENS, TOKENS)
                    pending = warpgroup_mma(
                        my_q, k.permute((1, 0)), no_scores, use_acc=False, is_async=True
                    )
                    scores, values = warpgroup_mma_wait(0, deps=(pending, accumulator))
                    if half == 0:
                        if nth > own:
                            if is_both:
                                mbarrier.arrive(empty.index(last), count=1)
                            else:
                                mbarrier.arrive(empty.index(last), count=2)
                        last = stage
                    if is_bundle:
                        readers = readers_ring.index(stage).slice(half * TOKENS, TOKENS)
                        readers = readers.load(gl.SliceLayout(0, qk_layout))
                        seen = (query_qk[:, None] >= (readers & 0xFFFF)[None, :]) & (
                            query_qk[:, None] < (readers >> 16)[None, :]
                        )
                        scores = gl.where(seen, scores, -float("inf"))
                    elif nth * BLOCK_KV + BLOCK_KV > kv_len:
                        token = nth * BLOCK_KV + _held_by(half * TOKENS + column, HEAD_DIM)
                        within = (token < kv_len)[None, :]
                        scores = gl.where(within, scores, -float("inf"))
                    new_max = gl.maximum(running_max, gl.max(scores, 1) * qk_scale)
                    # a query may have seen nothing yet
                    reference = gl.where(new_max == -float("inf"), 0.0, new_max)
                    rescale = gl.exp2(running_max - reference)
                    weights = gl.exp2(scores * qk_scale - reference[:, None])
                    running_sum = running_sum * rescale + gl.sum(weights, 1)
                    running_max = new_max
                    values = values * gl.convert_layout(rescale, pv_rows)[:, None]
                    rounded = weights.to(dtype)
                    if half == 0:
                        mbarrier.wait(v_full.index(stage), phase)
                        fence_async_shared()
                    v = kv_ring.index(2 * stage + 1).slice(half * TOKENS, TOKENS)
                    accumulator = warpgroup_mma(
                        gl.convert_layout(rounded, weights_layout), v, values, is_async=True
                    )
                    if EXACT_WEIGHTS:
                        rest = (weights - rounded.to(gl.float32)).to(dtype)
                        accumulator = warpgroup_mma(
                            gl.convert_layout(rest, weights_layout), v, accumulator, is_async=True
                        )
            values = warpgroup_mma_wait(0, deps=(accumulator,))
            if is_both | (steps < 2):
                mbarrier.arrive(q_empty.index(buffer), count=2)
            else:
                mbarrier.arrive(q_empty.index(buffer), count=1)

            # an open chunk may still be empty: weight zero, LSE -inf
            is_empty = running_sum == 0.0
            inverse = 1.0 / gl.where(is_empty, 1.0, running_sum)
            lse = gl.where(is_empty, -float("inf"), running_max + gl.log2(running_sum))
            result = values * gl.convert_layout(inverse, pv_rows)[:, None]
            if is_last:
                if steps > 0:
                    if is_both:
                        mbarrier.arrive(empty.index(last), count=1)
                    else:
                        mbarrier.arrive(empty.index(last), count=2)
                if is_shared:
                    stage = (step + steps - 2) % STAGES
                    mbarrier.wait(handed.index(shared % STAGES), (shared // STAGES) & 1)
                    other_lse = readers_ring.index(stage).load(qk_rows).to(gl.float32, bitcast=True)
                    larger = gl.maximum(lse, other_lse)
                    reference = gl.where(larger == -float("inf"), 0.0, larger)
                    weight = gl.exp2(lse - reference)
                    other_weight = gl.exp2(other_lse - reference)
                    total_weight = weight + other_weight
                    inverse = 1.0 / gl.where(total_weight == 0.0, 1.0, total_weight)
                    weight = gl.convert_layout(weight * inverse, pv_rows)
                    other_weight = gl.convert_layout(other_weight * inverse, pv_rows)
                    other = handed_ring.index(stage).load(pv_layout)
                    result = result * weight[:, None] + other * other_weight[:, None]
                    lse = gl.where(
                        total_weight == 0.0, -float("inf"), reference + gl.log2(total_weight)
                    )
                    mbarrier.arrive(empty.index(stage), count=2)

                query = (base + pv_row) // GROUP
                head = kv_head * GROUP + (base + pv_row) % GROUP
                valid = query < queries
                is_spoiled = 0
                if is_bundle:
                    # a weight of zero times the NaN or infinity of another row is NaN: once more
                    # then, token by token, so that it stays with the rows that see the token
                    is_spoiled = gl.max(gl.max((result != result).to(gl.int32), 1), 0)
                pv_lse = gl.convert_layout(lse, pv_rows)
                if part < 0:
                    at_row = row.to(gl.int64)
                    out_rows = out_ptr + at_row * out_row_stride + head * out_head_stride
                    gl.store(
                        out_rows[:, None] + pv_dim[None, :], result.to(dtype), mask=valid[:, None]
                    )
                    if WRITE_LSE:
                        gl.store(lse_ptr + at_row * num_qo_heads + head, pv_lse, mask=valid)
                else:
                    partial = (part + query).to(gl.int64) * num_qo_heads + head
                    partial_rows = partial_out_ptr + partial * HEAD_DIM
                    gl.store(
                        partial_rows[:, None] + pv_dim[None, :],
                        result,
                        mask=valid[:, None],
                        eviction_policy=KEPT,
                    )
                    gl.store(partial_lse_ptr + partial, pv_lse, mask=valid, eviction_policy=KEPT)
                if is_spoiled > 0:
                    role_barrier()
                    _repair(
                        pointers,
                        strides,
                        offsets,
                        (kv_start, kv_len, first, queries, part),
                        lse,
                        qk_scale,
                        num_qo_heads,
                        GROUP,
                        HEAD_DIM,
                    )
            else:
                readers_ring.index(last).store(lse.to(gl.int32, bitcast=True))
                handed_ring.index(last).store(result)
                mbarrier.arrive(handed.index(shared % STAGES), count=1)
        step += steps
        shared += is_shared.to(gl.int32)
        kind, kv_start, kv_len = kind1, kv_start1, kv_len1
        first, queries, part = first1, queries1, part1


@gluon.jit
def _pac_hopper_kernel(
    q_ptr,  # [B, Hq, D]
    k_ptr,  # [num_slots, Hkv, D]
    v_ptr,  # [num_slots, Hkv, D]
    out_ptr,  # [B, Hq, D]
    lse_ptr,  # [B, Hq] fp32, base 2
    partial_out_ptr,  # [parts, Hq, D] fp32
    partial_lse_ptr,  # [parts, Hq] fp32, base 2
    plan_ptr,  # packed plan, int32
    kv_index_ptr,  # [entries] int32
    bundle_index_ptr,  # [entries] int32
    bundle_readers_ptr,  # [entries] int32
    order_offset,
    tasks_offset,
    qk_scale,
    q_row_stride,
    q_head_stride,
    k_slot_stride,
    k_head_stride,
    v_slot_stride,
    v_head_stride,
    out_row_stride,
    out_head_stride,
    num_qo_heads,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BLOCK_KV: gl.constexpr,
    STAGES: gl.constexpr,
    NUM_CLASSES: gl.constexpr,
    EARLY_LAUNCH: gl.constexpr,
    EXACT_WEIGHTS: gl.constexpr,
    WRITE_LSE: gl.constexpr,
):
    """One program walks the tasks of one slot for one KV head."""
    slot = gl.program_id(0)
    kv_head = gl.program_id(1)
    dtype: gl.constexpr = k_ptr.dtype.element_ty
    step_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_KV, HEAD_DIM], dtype)
    q_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, HEAD_DIM], dtype)
    barrier_layout: gl.constexpr = mbarrier.MBarrierLayout()
    kv_ring = gl.allocate_shared_memory(dtype, [2 * STAGES, BLOCK_KV, HEAD_DIM], step_layout)
    q_ring = gl.allocate_shared_memory(dtype, [QUERY_BUFFERS, ROWS, HEAD_DIM], q_layout)
    line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    readers_ring = gl.allocate_shared_memory(gl.int32, [STAGES, BLOCK_KV], line)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    handed = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    q_full = gl.allocate_shared_memory(gl.int64, [QUERY_BUFFERS, 1], barrier_layout)
    q_empty = gl.allocate_shared_memory(gl.int64, [QUERY_BUFFERS, 1], barrier_layout)
    # full when the copies of every loading thread have come; a KV step is empty when both computing
    # warpgroups have let go of it
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=32 * LOADING_WARPS)
        mbarrier.init(v_full.index(stage), count=32 * LOADING_WARPS)
        mbarrier.init(empty.index(stage), count=2)
        mbarrier.init(handed.index(stage), count=1)
    for buffer in gl.static_range(QUERY_BUFFERS):
        mbarrier.init(q_full.index(buffer), count=32 * LOADING_WARPS)
        mbarrier.init(q_empty.index(buffer), count=2)

    rings = (q_ring, kv_ring, readers_ring)
    barriers = (q_full, q_empty, k_full, v_full, empty, handed)
    load_strides = (
        q_row_stride,
        q_head_stride,
        k_slot_stride,
        k_head_stride,
        v_slot_stride,
        v_head_stride,
    )
    attend_strides = (
        q_row_stride,
        q_head_stride,
        k_slot_stride,
        k_head_stride,
        v_slot_stride,
        v_head_stride,
        out_row_stride,
        out_head_stride,
    )
    offsets = (order_offset, tasks_offset, slot, kv_head)
    if EARLY_LAUNCH:
        # everything is read after this, by the other roles too
        tl.extra.cuda.gdc_wait()
    load_pointers = (
        q_ptr,
        k_ptr,
        v_ptr,
        plan_ptr,
        kv_index_ptr,
        bundle_index_ptr,
        bundle_readers_ptr,
    )
    attend_pointers = (
        q_ptr,
        k_ptr,
        v_ptr,
        out_ptr,
        lse_ptr,
        partial_out_ptr,
        partial_lse_ptr,
        plan_ptr,
        bundle_index_ptr,
        bundle_readers_ptr,
    )
    specialize(
        [
            (
                _load,
                (
                    rings,
                    barriers,
                    load_pointers,
                    load_strides,
                    offsets,
                    GROUP,
                    HEAD_DIM,
                    BLOCK_KV,
                    STAGES,
                    NUM_CLASSES,
                    EARLY_LAUNCH,
                ),
            ),
            (
                _attend,
                (
                    rings,
                    barriers,
                    attend_pointers,
                    attend_strides,
                    offsets,
                    qk_scale,
                    num_qo_heads,
                    0,
                    GROUP,
                    HEAD_DIM,
                    BLOCK_KV,
                    STAGES,
                    NUM_CLASSES,
                    EXACT_WEIGHTS,
                    WRITE_LSE,
                ),
            ),
            (
                _attend,
                (
                    rings,
                    barriers,
                    attend_pointers,
                    attend_strides,
                    offsets,
                    qk_scale,
                    num_qo_heads,
                    1,
                    GROUP,
                    HEAD_DIM,
                    BLOCK_KV,
                    STAGES,
                    NUM_CLASSES,
                    EXACT_WEIGHTS,
                    WRITE_LSE,
                ),
            ),
        ],
        [4, 4],
    )


def launch(
    grid: tuple[int, int],
    arguments: tuple[Any, ...],
    named: dict[str, Any],
    config: LaunchConfig,
) -> None:
    """Launch with the arguments of `pac`, in order and by name, tensors in fp16 or bf16."""
    _pac_hopper_kernel[grid](
        *arguments,
        BLOCK_KV=config.block_kv,
        STAGES=config.stages,
        NUM_CLASSES=len(config.execution_order),
        EARLY_LAUNCH=config.early_launch,
        **({"launch_pdl": True} if config.early_launch else {}),
        **named,
    )
