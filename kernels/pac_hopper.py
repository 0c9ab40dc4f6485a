"""PAC for Hopper: warps that only load, and two warpgroups that only compute.

The loading warps walk the tasks of a slot ahead of the computing ones, across the ends of tasks, so
that memory never waits for a softmax, a store or the start of the next task. The KV steps pass
through one ring of shared memory. The two computing warpgroups take the tasks in turn, or, where a
task has more query rows than one of them holds, together: then both read the same step.
"""

from __future__ import annotations

from typing import Any

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
from sglang_codec.kernels.pac import SLOT_INTS, TASK_INTS
from sglang_codec.kernels.warp_roles import specialize

SMALL, LARGE, BUNDLE = gl.constexpr(0), gl.constexpr(1), gl.constexpr(2)  # the classes of tasks
ROWS = gl.constexpr(64)  # query rows of a computing warpgroup
LOADING_WARPS = gl.constexpr(4)
QUERY_BUFFERS = gl.constexpr(2)  # of a computing warpgroup


@gluon.jit
def _tasks_of(plan_ptr, slot, NUM_CLASSES: gl.constexpr):
    """How many tasks a slot has, and what is to be added to a task's turn to get its number.

    Large tiles come first, then bundles, then small tiles.
    """
    bounds = plan_ptr + slot * SLOT_INTS
    small = gl.load(bounds)
    small_end = gl.load(bounds + 1)
    large = gl.load(bounds + 2)
    large_end = gl.load(bounds + 3)
    bundle = small
    bundle_end = small
    if NUM_CLASSES == 3:
        bundle = gl.load(bounds + 4)
        bundle_end = gl.load(bounds + 5)
    last_large = large_end - large
    last_bundle = last_large + bundle_end - bundle
    total = last_bundle + small_end - small
    return total, last_large, last_bundle, large, bundle - last_large, small - last_bundle


@gluon.jit
def _record_of(plan_ptr, tasks_offset, turn, tasks):
    """Class and fields of the task of a turn; of no tokens and no queries beyond the last."""
    total, last_large, last_bundle, to_large, to_bundle, to_small = tasks
    kind = SMALL
    task = turn + to_small
    if turn < last_large:
        kind = LARGE
        task = turn + to_large
    elif turn < last_bundle:
        kind = BUNDLE
        task = turn + to_bundle
    is_task = turn < total
    record = plan_ptr + tasks_offset + task * TASK_INTS
    kv_start = gl.load(record, mask=is_task, other=0)
    kv_len = gl.load(record + 1, mask=is_task, other=0)
    first = gl.load(record + 2, mask=is_task, other=0)
    queries = gl.load(record + 3, mask=is_task, other=0)
    part = gl.load(record + 4, mask=is_task, other=0)
    return kind, kv_start, kv_len, first, queries, part


@gluon.jit
def _batch_rows(plan_ptr, order_offset, tile_row, first, queries, GROUP: gl.constexpr):
    """Batch rows of some rows of a query tile; 0 where there is none."""
    query = tile_row // GROUP
    return gl.load(plan_ptr + order_offset + first + query, mask=query < queries, other=0)


@gluon.jit
def _load_queries(
    q_ring,
    barriers,
    q_ptr,
    strides,
    row,
    tile_row,
    queries,
    kv_head,
    warpgroup,
    nth,
    dim,
    GROUP: gl.constexpr,
):
    """Copy the query rows of one computing warpgroup's nth task to its buffer."""
    q_full, q_empty = barriers
    q_row_stride, q_head_stride = strides
    buffer = warpgroup * QUERY_BUFFERS + nth % QUERY_BUFFERS
    mbarrier.wait(q_empty.index(buffer), ((nth // QUERY_BUFFERS) & 1) ^ 1)
    head = kv_head * GROUP + tile_row % GROUP
    row_ptr = q_ptr + row.to(gl.int64) * q_row_stride + head * q_head_stride
    async_copy.async_copy_global_to_shared(
        q_ring.index(buffer),
        row_ptr[:, None] + dim[None, :],
        mask=(tile_row // GROUP < queries)[:, None],
    )
    async_copy.mbarrier_arrive(q_full.index(buffer), increment_count=False)


@gluon.jit
def _first_slots(kind, kv_index_ptr, bundle_index_ptr, kv_start, kv_len, token):
    """Where a task's KV slots are listed, and those of its first step."""
    index = kv_index_ptr + kv_start
    if kind == BUNDLE:
        index = bundle_index_ptr + kv_start
    return index, gl.load(index + token, mask=token < kv_len, other=0)


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
):
    """The loading warps: the queries and every KV step of every task of the slot, in order.

    What a task needs to know is loaded two tasks ahead, where it needs to look one task ahead.
    """
    q_ring, k_ring, v_ring, readers_ring = rings
    q_full, q_empty, k_full, v_full, empty = barriers
    q_ptr, k_ptr, v_ptr, plan_ptr, kv_index_ptr, bundle_index_ptr, bundle_readers_ptr = pointers
    q_row_stride, q_head_stride, k_slot_stride, k_head_stride, v_slot_stride, v_head_stride = (
        strides
    )
    order_offset, tasks_offset, slot, kv_head = offsets
    lanes: gl.constexpr = HEAD_DIM // 8  # 16 bytes each
    layout: gl.constexpr = gl.BlockedLayout(
        [1, 8], [32 // lanes, lanes], [LOADING_WARPS, 1], [1, 0]
    )
    token = gl.arange(0, BLOCK_KV, gl.SliceLayout(1, layout))
    entry = gl.arange(0, BLOCK_KV, gl.BlockedLayout([1], [32], [LOADING_WARPS], [0]))
    tile_row = gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    dim = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, layout))
    k_head_ptr = k_ptr + kv_head.to(gl.int64) * k_head_stride
    v_head_ptr = v_ptr + kv_head.to(gl.int64) * v_head_stride

    tasks = _tasks_of(plan_ptr, slot, NUM_CLASSES)
    total = tasks[0]
    kind, kv_start, kv_len, first, queries, part = _record_of(plan_ptr, tasks_offset, 0, tasks)
    kind1, kv_start1, kv_len1, first1, queries1, part1 = _record_of(
        plan_ptr, tasks_offset, 1, tasks
    )
    index, at = _first_slots(kind, kv_index_ptr, bundle_index_ptr, kv_start, kv_len, token)
    low = _batch_rows(plan_ptr, order_offset, tile_row, first, queries, GROUP)
    high = _batch_rows(plan_ptr, order_offset, ROWS + tile_row, first, queries, GROUP)
    step = 0
    warpgroup = 0  # whose turn it is
    nth0 = 0  # tasks of each warpgroup so far
    nth1 = 0
    for turn in range(total):
        index1, at1 = _first_slots(kind1, kv_index_ptr, bundle_index_ptr, kv_start1, kv_len1, token)
        low1 = _batch_rows(plan_ptr, order_offset, tile_row, first1, queries1, GROUP)
        high1 = _batch_rows(plan_ptr, order_offset, ROWS + tile_row, first1, queries1, GROUP)
        kind2, kv_start2, kv_len2, first2, queries2, part2 = _record_of(
            plan_ptr, tasks_offset, turn + 2, tasks
        )

        is_both = kind == LARGE
        owner = warpgroup
        nth = nth0
        if is_both:
            owner = 0
        elif warpgroup == 1:
            nth = nth1
        _load_queries(
            q_ring,
            (q_full, q_empty),
            q_ptr,
            (q_row_stride, q_head_stride),
            low,
            tile_row,
            queries,
            kv_head,
            owner,
            nth,
            dim,
            GROUP,
        )
        if is_both:
            _load_queries(
                q_ring,
                (q_full, q_empty),
                q_ptr,
                (q_row_stride, q_head_stride),
                high,
                ROWS + tile_row,
                queries,
                kv_head,
                1,
                nth1,
                dim,
                GROUP,
            )
            nth0 += 1
            nth1 += 1
        else:
            nth0 += 1 - warpgroup
            nth1 += warpgroup
            warpgroup = 1 - warpgroup

        for start in range(0, kv_len, BLOCK_KV):
            stage = step % STAGES
            within = (start + token < kv_len)[:, None]
            here = at.to(gl.int64)
            following = start + BLOCK_KV + token
            at = gl.load(index + following, mask=following < kv_len, other=0)
            mbarrier.wait(empty.index(stage), ((step // STAGES) & 1) ^ 1)
            if kind == BUNDLE:
                async_copy.async_copy_global_to_shared(
                    readers_ring.index(stage),
                    bundle_readers_ptr + kv_start + start + entry,
                    mask=start + entry < kv_len,
                )
            # beyond the end nothing is loaded: zeros, so a weight of zero never meets a NaN
            async_copy.async_copy_global_to_shared(
                k_ring.index(stage),
                k_head_ptr + here[:, None] * k_slot_stride + dim[None, :],
                mask=within,
            )
            async_copy.mbarrier_arrive(k_full.index(stage), increment_count=False)
            async_copy.async_copy_global_to_shared(
                v_ring.index(stage),
                v_head_ptr + here[:, None] * v_slot_stride + dim[None, :],
                mask=within,
            )
            async_copy.mbarrier_arrive(v_full.index(stage), increment_count=False)
            step += 1

        kind, kv_start, kv_len, queries = kind1, kv_start1, kv_len1, queries1
        index, at, low, high = index1, at1, low1, high1
        kind1, kv_start1, kv_len1, first1, queries1 = kind2, kv_start2, kv_len2, first2, queries2


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
    """One computing warpgroup: its tasks of the slot, 64 query rows of each."""
    q_ring, k_ring, v_ring, readers_ring = rings
    q_full, q_empty, k_full, v_full, empty = barriers
    (
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
    k_slot_stride, k_head_stride, v_slot_stride, v_head_stride, out_row_stride, out_head_stride = (
        strides
    )
    order_offset, tasks_offset, slot, kv_head = offsets
    dtype: gl.constexpr = k_ptr.dtype.element_ty
    qk_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_KV, 16])
    pv_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, pv_layout, 2)
    qk_rows: gl.constexpr = gl.SliceLayout(1, qk_layout)
    pv_rows: gl.constexpr = gl.SliceLayout(1, pv_layout)
    qk_row = gl.arange(0, ROWS, qk_rows)
    token = gl.arange(0, BLOCK_KV, gl.SliceLayout(0, qk_layout))
    pv_row = gl.arange(0, ROWS, pv_rows)
    pv_dim = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, pv_layout))
    no_scores = gl.zeros([ROWS, BLOCK_KV], gl.float32, qk_layout)

    tasks = _tasks_of(plan_ptr, slot, NUM_CLASSES)
    total = tasks[0]
    kind, kv_start, kv_len, first, queries, part = _record_of(plan_ptr, tasks_offset, 0, tasks)
    step = 0
    warpgroup = 0  # whose turn it is
    nth = 0  # own tasks so far
    for turn in range(total):
        kind1, kv_start1, kv_len1, first1, queries1, part1 = _record_of(
            plan_ptr, tasks_offset, turn + 1, tasks
        )
        is_both = kind == LARGE
        is_bundle = kind == BUNDLE
        if is_both | (warpgroup == WARPGROUP):
            base = 0
            if is_both:
                base = WARPGROUP * ROWS
            row = _batch_rows(plan_ptr, order_offset, base + pv_row, first, queries, GROUP)
            query_qk = (base + qk_row) // GROUP
            running_max = gl.full([ROWS], -float("inf"), gl.float32, qk_rows)
            running_sum = gl.zeros([ROWS], gl.float32, qk_rows)
            accumulator = warpgroup_mma_init(gl.zeros([ROWS, HEAD_DIM], gl.float32, pv_layout))
            buffer = WARPGROUP * QUERY_BUFFERS + nth % QUERY_BUFFERS
            mbarrier.wait(q_full.index(buffer), (nth // QUERY_BUFFERS) & 1)
            my_q = q_ring.index(buffer)
            my_step = step
            for start in range(0, kv_len, BLOCK_KV):
                stage = my_step % STAGES
                phase = (my_step // STAGES) & 1
                mbarrier.wait(k_full.index(stage), phase)
                fence_async_shared()
                pending = warpgroup_mma(
                    my_q,
                    k_ring.index(stage).permute((1, 0)),
                    no_scores,
                    use_acc=False,
                    is_async=True,
                )
                scores, values = warpgroup_mma_wait(0, deps=(pending, accumulator))
                if start > 0:
                    mbarrier.arrive(empty.index((my_step - 1) % STAGES), count=1)
                if is_bundle:
                    readers = readers_ring.index(stage).load(gl.SliceLayout(0, qk_layout))
                    seen = (query_qk[:, None] >= (readers & 0xFFFF)[None, :]) & (
                        query_qk[:, None] < (readers >> 16)[None, :]
                    )
                    scores = gl.where(seen, scores, -float("inf"))
                elif start + BLOCK_KV > kv_len:
                    within = (token < kv_len - start)[None, :]
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
                mbarrier.wait(v_full.index(stage), phase)
                fence_async_shared()
                accumulator = warpgroup_mma(
                    gl.convert_layout(rounded, weights_layout),
                    v_ring.index(stage),
                    values,
                    is_async=True,
                )
                if EXACT_WEIGHTS:
                    rest = (weights - rounded.to(gl.float32)).to(dtype)
                    accumulator = warpgroup_mma(
                        gl.convert_layout(rest, weights_layout),
                        v_ring.index(stage),
                        accumulator,
                        is_async=True,
                    )
                my_step += 1
            values = warpgroup_mma_wait(0, deps=(accumulator,))
            if kv_len > 0:
                mbarrier.arrive(empty.index((my_step - 1) % STAGES), count=1)

            query = (base + pv_row) // GROUP
            head = kv_head * GROUP + (base + pv_row) % GROUP
            valid = query < queries
            if is_bundle:
                # a weight of zero times the NaN or infinity of another row is NaN: once more then,
                # token by token, so that it stays with the rows that see the token
                is_spoiled = gl.max(gl.max((values != values).to(gl.int32), 1), 0)
                if is_spoiled > 0:
                    last_max = gl.convert_layout(running_max, pv_rows)
                    last_max = gl.where(last_max == -float("inf"), 0.0, last_max)
                    values = gl.zeros([ROWS, HEAD_DIM], gl.float32, pv_layout)
                    k_head_ptr = k_ptr + kv_head.to(gl.int64) * k_head_stride
                    v_head_ptr = v_ptr + kv_head.to(gl.int64) * v_head_stride
                    for own in range(kv_start, kv_start + kv_len):
                        at = gl.load(bundle_index_ptr + own).to(gl.int64)
                        who = gl.load(bundle_readers_ptr + own)
                        is_seen = (query >= (who & 0xFFFF)) & (query < (who >> 16))
                        k = gl.load(k_head_ptr + at * k_slot_stride + pv_dim).to(gl.float32)
                        v = gl.load(v_head_ptr + at * v_slot_stride + pv_dim).to(gl.float32)
                        own_q = my_q.load(pv_layout).to(gl.float32)
                        score = gl.sum(own_q * k[None, :], 1) * qk_scale
                        weight = gl.exp2(score - last_max)
                        values += gl.where(is_seen[:, None], weight[:, None] * v[None, :], 0.0)
            mbarrier.arrive(q_empty.index(buffer), count=1)
            nth += 1

            # an open chunk may still be empty: weight zero, LSE -inf
            is_empty = running_sum == 0.0
            inverse = 1.0 / gl.where(is_empty, 1.0, running_sum)
            lse = gl.where(is_empty, -float("inf"), running_max + gl.log2(running_sum))
            lse = gl.convert_layout(lse, pv_rows)
            result = values * gl.convert_layout(inverse, pv_rows)[:, None]
            if part < 0:
                at_row = row.to(gl.int64)
                out_rows = out_ptr + at_row * out_row_stride + head * out_head_stride
                gl.store(out_rows[:, None] + pv_dim[None, :], result.to(dtype), mask=valid[:, None])
                if WRITE_LSE:
                    gl.store(lse_ptr + at_row * num_qo_heads + head, lse, mask=valid)
            else:
                partial = (part + query).to(gl.int64) * num_qo_heads + head
                partial_rows = partial_out_ptr + partial * HEAD_DIM
                gl.store(partial_rows[:, None] + pv_dim[None, :], result, mask=valid[:, None])
                gl.store(partial_lse_ptr + partial, lse, mask=valid)
        else:
            # the other's steps are seen by both, so that neither is a lap of the ring ahead
            for passing in range(step, step + (kv_len + BLOCK_KV - 1) // BLOCK_KV):
                mbarrier.wait(v_full.index(passing % STAGES), (passing // STAGES) & 1)
                mbarrier.arrive(empty.index(passing % STAGES), count=1)
        step += (kv_len + BLOCK_KV - 1) // BLOCK_KV
        if is_both == 0:
            warpgroup = 1 - warpgroup
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
    k_ring = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_KV, HEAD_DIM], step_layout)
    v_ring = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_KV, HEAD_DIM], step_layout)
    q_ring = gl.allocate_shared_memory(dtype, [2 * QUERY_BUFFERS, ROWS, HEAD_DIM], q_layout)
    line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    readers_ring = gl.allocate_shared_memory(gl.int32, [STAGES, BLOCK_KV], line)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    q_full = gl.allocate_shared_memory(gl.int64, [2 * QUERY_BUFFERS, 1], barrier_layout)
    q_empty = gl.allocate_shared_memory(gl.int64, [2 * QUERY_BUFFERS, 1], barrier_layout)
    # full when the copies of every loading thread have come; a KV step is empty when both computing
    # warpgroups have let go of it
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=32 * LOADING_WARPS)
        mbarrier.init(v_full.index(stage), count=32 * LOADING_WARPS)
        mbarrier.init(empty.index(stage), count=2)
    for buffer in gl.static_range(2 * QUERY_BUFFERS):
        mbarrier.init(q_full.index(buffer), count=32 * LOADING_WARPS)
        mbarrier.init(q_empty.index(buffer), count=1)

    rings = (q_ring, k_ring, v_ring, readers_ring)
    barriers = (q_full, q_empty, k_full, v_full, empty)
    load_strides = (
        q_row_stride,
        q_head_stride,
        k_slot_stride,
        k_head_stride,
        v_slot_stride,
        v_head_stride,
    )
    attend_strides = (
        k_slot_stride,
        k_head_stride,
        v_slot_stride,
        v_head_stride,
        out_row_stride,
        out_head_stride,
    )
    offsets = (order_offset, tasks_offset, slot, kv_head)
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
    # the second product needs registers: half a step, and twice as many
    block_kv = config.block_kv // (2 if named["EXACT_WEIGHTS"] else 1)
    _pac_hopper_kernel[grid](
        *arguments,
        BLOCK_KV=block_kv,
        STAGES=config.stages * config.block_kv // block_kv,
        NUM_CLASSES=len(config.execution_order),
        **named,
    )
