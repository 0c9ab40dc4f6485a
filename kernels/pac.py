"""PAC, prefix attention computation: one KV chunk, once, for every query row that shares it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sglang_codec.kernels.given import is_lse, refuse
from sglang_codec.kernels.launch import LaunchConfig
from sglang_codec.kernels.records import SLOT_INTS, TASK_INTS

# the stock kernels for so small groups use no tensor cores and so keep the softmax weights in fp32;
# here a second product with what rounding took from the weights does the same
_EXACT_BELOW_GROUP = 4
_COPIED_BYTES = 16  # at once, with warp roles: where rows of Q, K and V then have to begin


@triton.jit
def _pac_task(
    task,
    kv_head,
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    partial_out_ptr,
    partial_lse_ptr,
    plan_ptr,
    kv_index_ptr,
    kv_readers_ptr,
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
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    IS_BUNDLE: tl.constexpr,
    EXACT_WEIGHTS: tl.constexpr,
    WRITE_LSE: tl.constexpr,
):
    """Attention of one query tile over one KV chunk, or one bundle, for one KV head."""
    record = plan_ptr + tasks_offset + task * TASK_INTS
    kv_start = tl.load(record)
    kv_len = tl.load(record + 1)
    first = tl.load(record + 2)
    queries = tl.load(record + 3)
    part = tl.load(record + 4)

    offs_row = tl.arange(0, ROWS)
    offs_dim = tl.arange(0, HEAD_DIM)
    token = tl.arange(0, BLOCK_KV)
    query = offs_row // GROUP
    head = kv_head * GROUP + offs_row % GROUP
    valid = query < queries
    row = tl.load(plan_ptr + order_offset + first + query, mask=valid, other=0).to(tl.int64)
    q = tl.load(
        q_ptr + row[:, None] * q_row_stride + head[:, None] * q_head_stride + offs_dim[None, :],
        mask=valid[:, None],
        other=0.0,
    )
    k_head_ptr = k_ptr + kv_head.to(tl.int64) * k_head_stride
    v_head_ptr = v_ptr + kv_head.to(tl.int64) * v_head_stride
    index = kv_index_ptr + kv_start
    readers_of = kv_readers_ptr + kv_start

    running_max = tl.full([ROWS], -float("inf"), tl.float32)
    running_sum = tl.zeros([ROWS], tl.float32)
    accumulator = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    # the slots of a step are loaded a step ahead, into registers: K and V then wait for nothing in
    # their own step, and the compiler can load them `num_stages - 1` steps ahead. An explicit
    # number of stages on the loop would make it pipeline the slots too, and wait for all of them.
    slot = tl.load(index + token, mask=token < kv_len, other=0)
    if IS_BUNDLE:
        readers = tl.load(readers_of + token, mask=token < kv_len, other=0)
    for start in tl.range(0, kv_len, BLOCK_KV):
        within = start + token < kv_len
        at = slot.to(tl.int64)
        # beyond the end nothing is loaded: zeros, so a weight of zero never meets a NaN
        k = tl.load(
            k_head_ptr + at[:, None] * k_slot_stride + offs_dim[None, :],
            mask=within[:, None],
            other=0.0,
        )
        v = tl.load(
            v_head_ptr + at[:, None] * v_slot_stride + offs_dim[None, :],
            mask=within[:, None],
            other=0.0,
        )
        following = start + BLOCK_KV + token
        slot = tl.load(index + following, mask=following < kv_len, other=0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if IS_BUNDLE:
            low = readers & 0xFFFF
            high = readers >> 16
            seen = (query[:, None] >= low[None, :]) & (query[:, None] < high[None, :])
            scores = tl.where(seen, scores, -float("inf"))
            readers = tl.load(readers_of + following, mask=following < kv_len, other=0)
            new_max = tl.maximum(running_max, tl.max(scores, 1) * qk_scale)
            # a query may have seen nothing yet
            reference = tl.where(new_max == -float("inf"), 0.0, new_max)
        else:
            scores = tl.where(within[None, :], scores, -float("inf"))
            new_max = tl.maximum(running_max, tl.max(scores, 1) * qk_scale)
            reference = new_max
        rescale = tl.exp2(running_max - reference)
        weights = tl.exp2(scores * qk_scale - reference[:, None])
        running_sum = running_sum * rescale + tl.sum(weights, 1)
        accumulator = accumulator * rescale[:, None]
        rounded = weights.to(v.dtype)
        accumulator = tl.dot(rounded, v, accumulator, input_precision="ieee")
        if EXACT_WEIGHTS:
            rest = (weights - rounded.to(tl.float32)).to(v.dtype)
            accumulator = tl.dot(rest, v, accumulator, input_precision="ieee")
        running_max = new_max

    if IS_BUNDLE:
        # a weight of zero times the NaN or infinity of another row is NaN: once more then, each
        # query by itself and with its own tokens only, so that it stays with the row it belongs to
        is_spoiled = tl.max(tl.max((accumulator != accumulator).to(tl.int32), 1), 0)
        reference = tl.where(running_max == -float("inf"), 0.0, running_max)
        for own in tl.range(0, queries * is_spoiled, num_stages=1):
            alone = tl.zeros([ROWS, HEAD_DIM], tl.float32)
            for start in tl.range(0, kv_len, BLOCK_KV, num_stages=1):
                within = start + token < kv_len
                readers = tl.load(readers_of + start + token, mask=within, other=0)
                is_own = ((readers & 0xFFFF) <= own) & (own < (readers >> 16))
                at = tl.load(index + start + token, mask=is_own, other=0).to(tl.int64)
                k = tl.load(
                    k_head_ptr + at[:, None] * k_slot_stride + offs_dim[None, :],
                    mask=is_own[:, None],
                    other=0.0,
                )
                v = tl.load(
                    v_head_ptr + at[:, None] * v_slot_stride + offs_dim[None, :],
                    mask=is_own[:, None],
                    other=0.0,
                )
                scores = tl.dot(q, tl.trans(k), input_precision="ieee") * qk_scale
                scores = tl.where(is_own[None, :], scores, -float("inf"))
                weights = tl.exp2(scores - reference[:, None])
                rounded = weights.to(v.dtype)
                alone = tl.dot(rounded, v, alone, input_precision="ieee")
                if EXACT_WEIGHTS:
                    rest = (weights - rounded.to(tl.float32)).to(v.dtype)
                    alone = tl.dot(rest, v, alone, input_precision="ieee")
            accumulator = tl.where((query == own)[:, None], alone, accumulator)

    # an open chunk may still be empty: weight zero, LSE -inf
    is_empty = running_sum == 0.0
    result = accumulator / tl.where(is_empty, 1.0, running_sum)[:, None]
    lse = tl.where(is_empty, -float("inf"), running_max + tl.log2(running_sum))

    if part < 0:
        # the only part of its row; read again rather than kept in registers throughout the loop
        row = tl.load(
            plan_ptr + order_offset + first + query, mask=valid, other=0, volatile=True
        ).to(tl.int64)
        out_row = out_ptr + row * out_row_stride + head * out_head_stride
        tl.store(
            out_row[:, None] + offs_dim[None, :],
            result.to(out_ptr.dtype.element_ty),
            mask=valid[:, None],
        )
        if WRITE_LSE:
            tl.store(lse_ptr + row * num_qo_heads + head, lse, mask=valid)
    else:
        partial = (part + query).to(tl.int64) * num_qo_heads + head
        partial_row = partial_out_ptr + partial * HEAD_DIM
        tl.store(partial_row[:, None] + offs_dim[None, :], result, mask=valid[:, None])
        tl.store(partial_lse_ptr + partial, lse, mask=valid)


@triton.jit
def _pac_kernel(
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
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    CLASSES: tl.constexpr,  # LaunchConfig.execution_order
    EARLY_LAUNCH: tl.constexpr,
    EXACT_WEIGHTS: tl.constexpr,
    WRITE_LSE: tl.constexpr,
):
    """One program walks the tasks of one slot for one KV head, class by class."""
    slot = tl.program_id(0)
    kv_head = tl.program_id(1)
    if EARLY_LAUNCH:
        tl.extra.cuda.gdc_launch_dependents()
    for index in tl.static_range(len(CLASSES)):
        of_class = plan_ptr + slot * SLOT_INTS + 2 * CLASSES[index][0]
        begin = tl.load(of_class)
        end = tl.load(of_class + 1)
        for task in tl.range(begin, end, num_stages=1):
            _pac_task(
                task,
                kv_head,
                q_ptr,
                k_ptr,
                v_ptr,
                out_ptr,
                lse_ptr,
                partial_out_ptr,
                partial_lse_ptr,
                plan_ptr,
                bundle_index_ptr if CLASSES[index][3] else kv_index_ptr,
                bundle_readers_ptr,
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
                GROUP,
                HEAD_DIM,
                CLASSES[index][1],
                CLASSES[index][2],
                CLASSES[index][3],
                EXACT_WEIGHTS,
                WRITE_LSE,
            )


def pac(
    q: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    partial_out: torch.Tensor,
    partial_lse: torch.Tensor,
    plan: torch.Tensor,
    kv_index: torch.Tensor,
    bundle_index: torch.Tensor,
    bundle_readers: torch.Tensor,
    *,
    order_offset: int,
    tasks_offset: int,
    num_slots: int,
    sm_scale: float,
    config: LaunchConfig,
) -> None:
    """Run every task of a packed plan, with the lengths that `follow_lengths` wrote into it.

    Args:
        q, out: ``[B, Hq, D]``, at least as many rows as the plan has. k_buffer, v_buffer:
            ``[num_slots, Hkv, D]``. The last dimension of each is contiguous.
        lse: ``[B, Hq]`` fp32 contiguous, base 2, or None.
        partial_out: ``[parts, Hq, D]`` fp32 contiguous; partial_lse: ``[parts, Hq]``.
        plan: packed plan (`PlanLayout`), int32; the offsets say where its sections begin.
        kv_index: int32 KV slots. bundle_index: int32 KV slots of the bundles, bundle_readers: the
            queries ``[low, high)`` that see each, as ``low + 65536 * high``. With warp roles tasks
            begin at multiples of four entries, and 128 entries behind the last may be read
            (`planning/plan.py`: `ALIGNED_ENTRIES`, `READ_AHEAD`).
        sm_scale: factor of the scores before the softmax, greater than 0.

    Rows with one part are written to `out` (and `lse`); the others leave partials for `por`.

    Raises:
        ValueError: shapes, dtypes or strides that do not match.
    """
    shape, (_, *k_row), (_, *v_row) = q.shape, k_buffer.shape, v_buffer.shape
    _, *partial_row = partial_out.shape
    strides = (*q.stride(), *k_buffer.stride(), *v_buffer.stride(), *out.stride())
    if not (
        len(shape) == len(k_row) + 1 == 3
        and strides[2::3] == (1, 1, 1, 1)
        and shape == out.shape == (shape[0], *partial_row)
        and k_row == v_row == [k_row[0], shape[2]]
        and shape[1] % k_row[0] == 0
        and q.dtype == k_buffer.dtype == v_buffer.dtype == out.dtype
        and is_lse(lse, shape[:2])
        and not (config.warp_roles and _begin_anywhere(q, k_buffer, v_buffer, strides))
    ):
        refuse(
            "pac",
            "q and out [rows, Hq, D], k_buffer and v_buffer [num_slots, Hkv, D], of one dtype, the "
            "last dimension contiguous (on Hopper rows that begin at multiples of "
            f"{_COPIED_BYTES} bytes), and lse [rows, Hq] fp32 contiguous",
            q=q,
            k_buffer=k_buffer,
            v_buffer=v_buffer,
            out=out,
            lse=lse,
            partial_out=partial_out,
        )
    _, num_qo_heads, head_dim = shape
    num_kv_heads = k_row[0]
    group = num_qo_heads // num_kv_heads
    arguments = (
        q,
        k_buffer,
        v_buffer,
        out,
        lse if lse is not None else partial_lse,
        partial_out,
        partial_lse,
        plan,
        kv_index,
        bundle_index,
        bundle_readers,
        order_offset,
        tasks_offset,
        sm_scale * 1.4426950408889634,  # log2(e): the softmax runs in base 2
        *strides[0:2],
        *strides[3:5],
        *strides[6:8],
        *strides[9:11],
    )
    named = {
        "num_qo_heads": num_qo_heads,
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "EXACT_WEIGHTS": group < _EXACT_BELOW_GROUP and v_buffer.dtype != torch.float32,
        "WRITE_LSE": lse is not None,
        "num_warps": config.num_warps,
    }
    grid = (num_slots, num_kv_heads)
    if config.warp_roles:
        # compiled for one architecture, by a part of Triton that the interpreter does not have
        from sglang_codec.kernels.pac_hopper import launch

        launch(grid, arguments, named, config)
        return
    _pac_kernel[grid](
        *arguments,
        CLASSES=config.execution_order,
        EARLY_LAUNCH=config.early_launch,
        num_stages=config.stages,
        **named,
    )


def _begin_anywhere(
    q: torch.Tensor, k_buffer: torch.Tensor, v_buffer: torch.Tensor, strides: tuple[int, ...]
) -> bool:
    """Whether a row of Q, K or V may begin where it cannot be copied from."""
    steps = strides[0] | strides[1] | strides[3] | strides[4] | strides[6] | strides[7]
    begin = q.data_ptr() | k_buffer.data_ptr() | v_buffer.data_ptr()
    return bool((begin | steps * q.itemsize) % _COPIED_BYTES)
