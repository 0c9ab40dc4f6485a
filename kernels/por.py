"""POR, partial output reduction: the exact softmax merge of the partials of each row."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from sglang_codec.attention_shape import columns_for
from sglang_codec.kernels.again import addresses
from sglang_codec.kernels.given import are_sinks, is_lse, refuse
from sglang_codec.kernels.records import MERGE_INTS
from sglang_codec.kernels.results import sinks_of
from sglang_codec.kernels.softmax import join_sink

# heads of a program and parts of a step: where every program has one (row, head) pair at most,
# nothing but more loads at once hides the latency; beyond, heads share what is loaded per row.
# A program is one warp: what belongs to a head is a scalar to it, and no warp waits for another
_FEW_HEADS, _FEW_PARTS = 1, 16
_MANY_HEADS, _MANY_PARTS = 4, 4
# as many programs as are resident at once, whatever the batch: those with nothing to do end after
# one load, and none is launched behind them
_PROGRAMS_PER_SM = 16
_INTERPRETED_PROGRAMS = 3


class PorArguments(NamedTuple):
    """What a launch passes: tensors, which the kernel sees as pointers, and numbers."""

    out_ptr: torch.Tensor  # [B, n * Hq, D] with n query rows of each of B requests
    lse_ptr: torch.Tensor  # [B, n * Hq] fp32, base 2
    partial_out_ptr: torch.Tensor  # [parts, n * Hq, D] fp32
    partial_lse_ptr: torch.Tensor  # [parts, n * Hq] fp32, base 2
    sinks_ptr: torch.Tensor | None  # [Hq]
    plan_ptr: torch.Tensor  # packed plan, int32
    merges_offset: int
    out_row_stride: int
    out_head_stride: int


class PorVariant(NamedTuple):
    """What the kernel is compiled for."""

    VALUE_DIM: int
    VALUE_COLUMNS: int
    FEW_HEADS: int  # of a program and step, where every program has one (row, head) pair at most
    FEW_PARTS: int
    MANY_HEADS: int  # where there are more
    MANY_PARTS: int
    WRITE_LSE: bool
    EARLY_LAUNCH: bool
    QUERY_ROWS: int  # of a request, whose heads follow one another as those of a single row do


class Merges(NamedTuple):
    """The plan's list of rows to merge, and how far it and the output go."""

    records: Any
    listed: Any
    batch: Any  # rows of the plan
    num_rows: Any  # of the output: those beyond the batch follow the listed ones
    num_qo_heads: Any


@triton.jit
def _record(merges, index, readable):
    """Row number `index` to merge and the bounds of its parts; none for those of no plan."""
    record = merges.records + (index + 1) * MERGE_INTS
    within = index < readable
    row = tl.load(record, mask=within, other=0)
    first = tl.load(record + 1, mask=within, other=0)
    last = tl.load(record + 2, mask=within, other=0)
    is_listed = index < merges.listed
    row = tl.where(is_listed, row, merges.batch + index - merges.listed)
    return row, tl.where(is_listed, first, 0), tl.where(is_listed, last, 0)


@triton.jit
def _num_rows_to_merge(merges):
    """The listed rows, and those of the output that the plan does not know."""
    return merges.listed + tl.maximum(merges.num_rows - merges.batch, 0)


@triton.jit
def _parts(plan_ptr, first, last, PARTS: tl.constexpr):
    """Partial rows of the next parts of a row, ``[PARTS]``; -1 beyond the last."""
    parts = ()
    for i in tl.static_range(PARTS):
        parts = parts + (tl.load(plan_ptr + first + i, mask=first + i < last, other=-1),)
    return parts


@triton.jit
def _advance(state, loaded, h: tl.constexpr, HEADS: tl.constexpr, PARTS: tl.constexpr):
    """The state of one head after the parts of a step."""
    new_max = state[0]
    for i in tl.static_range(PARTS):
        new_max = tl.maximum(new_max, loaded[i * HEADS + h][0])
    reference = tl.where(new_max == -float("inf"), 0.0, new_max)
    rescale = tl.exp2(state[0] - reference)
    running_sum = state[1] * rescale
    accumulator = state[2] * rescale
    for i in tl.static_range(PARTS):
        weight = tl.exp2(loaded[i * HEADS + h][0] - reference)
        running_sum += weight
        accumulator += weight * loaded[i * HEADS + h][1]
    return new_max, running_sum, accumulator


@triton.jit
def _lse_of(state):
    """LSE of the parts that a state has seen; -inf if none of them had a token."""
    return tl.where(state[1] == 0.0, -float("inf"), state[0] + tl.log2(state[1]))


@triton.jit
def _merge_rows(
    given, record, merges, HEADS: tl.constexpr, PARTS: tl.constexpr, VARIANT: tl.constexpr
):
    """Merge every n-th block of `HEADS` heads of a row, `PARTS` parts a step, in token order.

    `record` is that of the first block, which the caller has loaded.
    """
    VALUE_DIM: tl.constexpr = VARIANT.VALUE_DIM
    VALUE_COLUMNS: tl.constexpr = VARIANT.VALUE_COLUMNS
    row, first, last = record
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    blocks = tl.cdiv(merges.num_qo_heads, HEADS)
    dim = tl.arange(0, VALUE_COLUMNS)
    if VALUE_COLUMNS > VALUE_DIM:
        # lanes behind the end do what those at the beginning do: no mask, and nothing else is read
        dim = dim % VALUE_DIM
    parts = _parts(given.plan_ptr, first, last, PARTS)
    if VARIANT.EARLY_LAUNCH:
        # the plan is older than PAC, the partials are PAC's
        tl.extra.cuda.gdc_wait()
    items = _num_rows_to_merge(merges) * blocks
    for item in tl.range(program, items, programs, num_stages=1):
        # a block ahead, so that its latency passes while this one is merged
        following = (item + programs) // blocks
        next_row, next_first, next_last = _record(merges, following, merges.listed)
        head = item % blocks * HEADS
        # of each head the largest LSE, the sum of the weights and that of the weighted values
        states = ()
        sinks = ()
        for h in tl.static_range(HEADS):
            states = states + ((-float("inf"), 0.0, tl.zeros([VALUE_COLUMNS], tl.float32)),)
            if given.sinks_ptr is not None:
                # of a head behind the last of all, which is not stored, that one's
                of_head = tl.minimum(head + h, merges.num_qo_heads - 1)
                if VARIANT.QUERY_ROWS > 1:
                    of_head = of_head % (merges.num_qo_heads // VARIANT.QUERY_ROWS)
                sinks = sinks + (sinks_of(given, of_head),)
        for start in tl.range(first, last, PARTS, num_stages=1):
            loaded = ()
            for i in tl.static_range(PARTS * HEADS):
                part = parts[i // HEADS]
                wanted = (part >= 0) & (head + i % HEADS < merges.num_qo_heads)
                pair = part.to(tl.int64) * merges.num_qo_heads + head + i % HEADS
                # an empty part has LSE -inf and weight zero; what it stored is finite. Volatile
                # keeps the order, in which the last LSE, that everything waits for, is loaded last
                partial = given.partial_out_ptr + pair * VALUE_DIM
                values = tl.load(partial + dim, mask=wanted, other=0.0, volatile=True)
                lse = tl.load(
                    given.partial_lse_ptr + pair, mask=wanted, other=-float("inf"), volatile=True
                )
                loaded = loaded + ((lse, values),)
            parts = _parts(given.plan_ptr, start + PARTS, last, PARTS)
            advanced = ()
            for h in tl.static_range(HEADS):
                advanced = advanced + (_advance(states[h], loaded, h, HEADS, PARTS),)
            states = advanced
        parts = _parts(given.plan_ptr, next_first, next_last, PARTS)
        for h in tl.static_range(HEADS):
            # a row without parts (padding of a captured batch) becomes zero
            is_empty = states[h][1] == 0.0
            result = states[h][2] / tl.where(is_empty, 1.0, states[h][1])
            if given.sinks_ptr is not None:
                left, joined = join_sink(_lse_of(states[h]), sinks[h])
                result = result * left
            written = (row < merges.num_rows) & (head + h < merges.num_qo_heads)
            out_row = given.out_ptr + row.to(tl.int64) * given.out_row_stride
            out_head = out_row + (head + h) * given.out_head_stride
            tl.store(out_head + dim, result.to(given.out_ptr.dtype.element_ty), mask=written)
            if VARIANT.WRITE_LSE:
                merged = joined if given.sinks_ptr is not None else _lse_of(states[h])
                lse_row = given.lse_ptr + row.to(tl.int64) * merges.num_qo_heads
                tl.store(lse_row + head + h, merged, mask=written)
        row = next_row
        first = next_first
        last = next_last


# the rows of the output change from batch to batch, and need no kernel of their own each
@triton.jit(do_not_specialize=["num_rows", "num_readable"])
def _por_kernel(
    given,
    num_rows,
    num_readable,  # of them, those for which the plan has room for a record
    num_qo_heads,
    VARIANT: tl.constexpr,
):
    """Programs share the rows that the plan lists; how, depends on how many those are."""
    if VARIANT.EARLY_LAUNCH:
        # whatever follows waits for all of this, but may be launched meanwhile: every program of
        # this has its place by now
        tl.extra.cuda.gdc_launch_dependents()
    program = tl.program_id(0)
    records = given.plan_ptr + given.merges_offset
    listed = tl.load(records)
    batch = tl.load(records + 1)
    merges = Merges(records, listed, batch, num_rows, num_qo_heads)
    # records are read whatever the length of the list: with few rows nothing else hides the
    # latency, so their loads do not wait for it
    blocks = tl.cdiv(num_qo_heads, VARIANT.FEW_HEADS)
    record = _record(merges, program // blocks, num_readable)
    if _num_rows_to_merge(merges) * num_qo_heads <= tl.num_programs(0):
        _merge_rows(given, record, merges, VARIANT.FEW_HEADS, VARIANT.FEW_PARTS, VARIANT)
    else:
        blocks = tl.cdiv(num_qo_heads, VARIANT.MANY_HEADS)
        record = _record(merges, program // blocks, listed)
        _merge_rows(given, record, merges, VARIANT.MANY_HEADS, VARIANT.MANY_PARTS, VARIANT)


@functools.cache
def _most_programs(device: torch.device) -> int:
    if device.type != "cuda":
        return _INTERPRETED_PROGRAMS
    return _PROGRAMS_PER_SM * torch.cuda.get_device_properties(device).multi_processor_count


def por(
    out: torch.Tensor,
    lse: torch.Tensor | None,
    partial_out: torch.Tensor,
    partial_lse: torch.Tensor,
    plan: torch.Tensor,
    *,
    merges_offset: int,
    early_launch: bool = False,
    sinks: torch.Tensor | None = None,
    query_rows: int = 1,
) -> Callable[[torch.Tensor], None] | None:
    """Merge the partials of the rows that the plan lists; every other planned row is `pac`'s.

    ``O = sum_i 2^(l_i - m) O_i / sum_i 2^(l_i - m)``, ``l = m + log2(sum_i 2^(l_i - m))`` with
    ``m = max_i l_i``; a row without parts becomes zero with LSE -inf, and so do the rows behind
    the planned batch.

    Args:
        out: ``[B * n, Hq, D]``, `n` query rows of each request, the last dimension contiguous and
            with ``n > 1`` the rows as far apart as their heads are long; B may exceed what the plan
            has room for.
        lse: ``[B * n, Hq]`` fp32 contiguous, base 2, or None.
        partial_out: ``[parts, n * Hq, D]`` fp32 contiguous; partial_lse: ``[parts, n * Hq]`` fp32.
        plan: packed plan (`PlanLayout`), int32; its list of merges begins at `merges_offset`.
        early_launch: start while PAC finishes (see `LaunchConfig`).
        sinks: ``[Hq]`` contiguous, a logit per head that joins the sum of every merged row.
        query_rows: `n`.

    The grid depends on the shape of `out` and on the GPU only, so a captured launch serves every
    later plan.

    Returns:
        The same launch for another `out` that is `alike`, of any number of rows and without `lse`;
        None where nothing is compiled.

    Raises:
        ValueError: shapes, dtypes or strides that do not match.
    """
    shape, strides, (_, *partial_row) = out.shape, out.stride(), partial_out.shape
    # to this kernel the query rows of a request are one row with as many times the heads
    if not (
        strides[2:] == (1,)
        and [query_rows * shape[1], shape[2]] == partial_row
        and shape[0] % query_rows == 0
        and (query_rows == 1 or strides[0] == shape[1] * strides[1])
        and is_lse(lse, shape[:2])
        and are_sinks(sinks, shape[1])
    ):
        refuse(
            "por",
            "out [rows, Hq, D], the last dimension contiguous, partial_out [parts, Hq, D], lse "
            "[rows, Hq] fp32 contiguous, and sinks [Hq] contiguous floats; with query rows, here "
            f"{query_rows}, rows of out that follow their heads and partial_out with each's heads",
            out=out,
            lse=lse,
            sinks=sinks,
            partial_out=partial_out,
        )
    num_rows, num_qo_heads = shape[0] // query_rows, query_rows * shape[1]
    value_dim = shape[2]
    most_programs = _most_programs(out.device)
    most_readable = (plan.numel() - merges_offset) // MERGE_INTS.value - 1
    arguments = PorArguments(
        out,
        lse if lse is not None else partial_lse,
        partial_out,
        partial_lse,
        sinks,
        plan,
        merges_offset,
        query_rows * strides[0],
        strides[1],
    )
    variant = PorVariant(
        VALUE_DIM=value_dim,
        VALUE_COLUMNS=columns_for(value_dim),
        FEW_HEADS=_FEW_HEADS,
        FEW_PARTS=_FEW_PARTS,
        MANY_HEADS=min(_MANY_HEADS, num_qo_heads),
        MANY_PARTS=_MANY_PARTS,
        WRITE_LSE=lse is not None,
        EARLY_LAUNCH=early_launch,
        QUERY_ROWS=query_rows,
    )
    compiled = _por_kernel[(min(num_rows * num_qo_heads, most_programs),)](
        arguments,
        num_rows,
        min(num_rows, most_readable),
        num_qo_heads,
        variant,
        num_warps=1,
        **({"launch_pdl": True} if early_launch else {}),
    )
    if compiled is None or lse is not None:
        return None
    given = addresses(arguments)

    def again(out: torch.Tensor) -> None:
        rows = out.shape[0] // query_rows
        grid = (min(rows * num_qo_heads, most_programs), 1, 1)
        moved = given._replace(out_ptr=out.data_ptr())
        compiled[grid](moved, rows, min(rows, most_readable), num_qo_heads, variant)

    return again
