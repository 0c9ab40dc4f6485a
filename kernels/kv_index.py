"""Filling the KV index on the device: gather at plan time, append one slot per step."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from sglang_codec.kernels.given import refuse
from sglang_codec.kernels.records import NO_TAIL, NO_TAIL_BEHIND_WINDOW

_GATHER_BLOCK = 1024
_APPEND_BLOCK = 128


@triton.jit
def _gather_slots_kernel(
    kv_index_ptr,  # [entries] int32
    req_to_token_ptr,  # [pool rows, max context] int32
    pool_rows_ptr,  # [B] integers
    spans_ptr,  # [S, 4] int32: batch row, first token, tokens, first entry
    req_stride,
    moved_to_ptr,  # [slots] integers, the slots' places in another pool; None for their own
    BLOCK: tl.constexpr,
):
    """One program copies one block of one span."""
    span = spans_ptr + tl.program_id(0) * 4
    tokens = tl.load(span + 2)
    offset = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if tl.program_id(1) * BLOCK < tokens:
        pool_row = tl.load(pool_rows_ptr + tl.load(span)).to(tl.int64)
        source = req_to_token_ptr + pool_row * req_stride + tl.load(span + 1)
        within = offset < tokens
        slots = tl.load(source + offset, mask=within, other=0)
        if moved_to_ptr is not None:
            slots = tl.load(moved_to_ptr + slots, mask=within, other=0).to(tl.int32)
        tl.store(kv_index_ptr + tl.load(span + 3) + offset, slots, mask=within)


@triton.jit
def _append_slots_kernel(
    kv_index_ptr,  # [entries] int32
    row_lengths_ptr,  # [capacity] int32
    plan_ptr,  # packed plan, int32
    append_base_offset,
    seq_lens_ptr,  # [B] integers, the new tokens included
    new_slots_ptr,  # [B * QUERY_ROWS] integers, the new tokens' KV slots
    batch,
    NO_TAIL: tl.constexpr,
    QUERY_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program records the length and the newest slots of one block of rows."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    within = row < batch
    length = tl.load(seq_lens_ptr + row, mask=within, other=0).to(tl.int32)
    tl.store(row_lengths_ptr + row, length, mask=within)
    base = tl.load(plan_ptr + append_base_offset + row, mask=within, other=NO_TAIL)
    for nth in tl.static_range(QUERY_ROWS):
        slot = tl.load(new_slots_ptr + row * QUERY_ROWS + nth, mask=within, other=0).to(tl.int32)
        # nor has padding of a captured batch, rows that the plan does not know
        entry = base + length - (QUERY_ROWS - nth)
        is_token = base >= NO_TAIL + 1
        if QUERY_ROWS > 1:
            is_token = is_token & (length >= QUERY_ROWS - nth)
        tl.store(kv_index_ptr + tl.where(is_token, entry, 0), slot, mask=within & is_token)


def gather_slots(
    kv_index: torch.Tensor,
    req_to_token: torch.Tensor,
    pool_rows: torch.Tensor,
    spans: torch.Tensor,
    *,
    longest: int,
    moved_to: torch.Tensor | None = None,
) -> Callable[..., None] | None:
    """Copy ``req_to_token[pool_rows[row], first:first + tokens]`` to ``kv_index[entry:]`` per span.

    Args:
        kv_index: int32 ``[entries]``. req_to_token: int32 ``[pool rows, max context]``.
        pool_rows: ``[B]`` integer pool rows of the batch. spans: int32 ``[S, 4]``.
        longest: tokens of the longest span.
        moved_to: ``[slots]`` contiguous integers: what to put in the place of each slot, its own
            in another pool; None for the slots as they are.

    Returns:
        The same launch for other ``(pool_rows, spans, longest)``, of tensors that are `alike`, and
        spans; None where nothing is compiled.

    Raises:
        ValueError: another dtype or layout.
    """
    if not len(spans):
        return None
    if not (
        kv_index.dtype == req_to_token.dtype == spans.dtype == torch.int32
        and spans.shape[1:] == (4,)
        and spans.is_contiguous()
        and kv_index.is_contiguous()
        and pool_rows.is_contiguous()
        and req_to_token.stride()[1:] == (1,)
        and (moved_to is None or (moved_to.dim() == 1 and moved_to.is_contiguous()))
    ):
        refuse(
            "gather_slots",
            "an int32 KV index, pool [rows, context] and spans [S, 4], and contiguous pool rows",
            kv_index=kv_index,
            req_to_token=req_to_token,
            pool_rows=pool_rows,
            spans=spans,
            moved_to=moved_to,
        )
    fixed = (req_to_token.stride(0), moved_to, _GATHER_BLOCK)
    compiled = _gather_slots_kernel[_gather_grid(spans, longest)](
        kv_index, req_to_token, pool_rows, spans, *fixed
    )
    if compiled is None:
        return None
    index, table = kv_index.data_ptr(), req_to_token.data_ptr()
    if moved_to is not None:
        fixed = (fixed[0], moved_to.data_ptr(), _GATHER_BLOCK)

    def again(pool_rows: torch.Tensor, spans: torch.Tensor, longest: int) -> None:
        grid = _gather_grid(spans, longest)
        compiled[grid](index, table, pool_rows.data_ptr(), spans.data_ptr(), *fixed)

    return again


def _gather_grid(spans: torch.Tensor, longest: int) -> tuple[int, int, int]:
    return len(spans), triton.cdiv(longest, _GATHER_BLOCK), 1


def append_slots(
    kv_index: torch.Tensor,
    row_lengths: torch.Tensor,
    plan: torch.Tensor,
    seq_lens: torch.Tensor,
    new_slots: torch.Tensor,
    *,
    append_base_offset: int,
    windowed: bool = False,
    query_rows: int = 1,
) -> None:
    """Record ``seq_lens`` ``[B]`` and put each row's newest slots at the end of its tail.

    All of them, in every step: what a step before has put there was perhaps rejected.

    Args:
        kv_index: int32 ``[entries]``. plan: packed plan (`PlanLayout`), int32.
        row_lengths: int32 ``[capacity]``, as many rows as a plan may have. Those of a batch beyond
            them are padding, and left alone.
        seq_lens: ``[B]`` integers, the new tokens included. new_slots: ``[B * query_rows]`` integer
            KV slots, row by row.
        windowed: whether the plan is one of layers with a window.
        query_rows: new tokens of each row, which are all in its tail.

    Raises:
        ValueError: fewer slots than rows, or another dtype or layout.
    """
    batch = min(seq_lens.numel(), row_lengths.numel())
    if not (
        new_slots.numel() >= batch * query_rows
        and kv_index.dtype == row_lengths.dtype == plan.dtype == torch.int32
        and seq_lens.is_contiguous()
        and new_slots.is_contiguous()
    ):
        refuse(
            "append_slots",
            f"a length and a slot of every row ({query_rows} of each), contiguous, and an int32 "
            "index, lengths and plan",
            kv_index=kv_index,
            row_lengths=row_lengths,
            plan=plan,
            seq_lens=seq_lens,
            new_slots=new_slots,
        )
    _append_slots_kernel[(triton.cdiv(batch, _APPEND_BLOCK),)](
        kv_index,
        row_lengths,
        plan,
        append_base_offset,
        seq_lens,
        new_slots,
        batch,
        NO_TAIL=NO_TAIL_BEHIND_WINDOW.value if windowed else NO_TAIL.value,
        QUERY_ROWS=query_rows,
        BLOCK=_APPEND_BLOCK,
    )
