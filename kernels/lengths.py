"""Once per step: bring the lengths of a plan's tasks up to date, and lay out its bundles."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sglang_codec.kernels.given import refuse
from sglang_codec.kernels.records import PIECE_INTS, TASK_INTS

_TASK_BLOCK = 128
_TOKEN_BLOCK = 128
# of windows, where each task looks at all of its rows, in one load
_WINDOW_TASK_BLOCK, _QUERY_BLOCK = 8, 128
_PROGRAMS = 264
_PER_BUNDLE = 8  # programs that lay out one bundle, block by block in turn
_INTERPRETED_PROGRAMS = 2


@triton.jit
def _follow_lengths_kernel(
    plan_ptr,  # packed plan, int32
    row_lengths_ptr,  # [capacity] int32
    kv_index_ptr,  # [entries] int32
    bundle_index_ptr,  # [entries] int32
    bundle_readers_ptr,  # [entries] int32
    tasks_offset,
    append_base_offset,
    chunks_at,  # where the plan says how many tasks are not bundles
    tasks_at,  # and how many tasks there are
    order_offset,  # of the plan's order; None without windows
    WINDOW: tl.constexpr,  # newest tokens that a row sees, 0 for all
    QUERY_ROWS: tl.constexpr,  # of a row, the newest tokens, each of which sees all up to itself
    BUNDLES: tl.constexpr,
    PER_BUNDLE: tl.constexpr,
    MOST_PIECES: tl.constexpr,
    TASK_BLOCK: tl.constexpr,
    TOKEN_BLOCK: tl.constexpr,
    QUERY_BLOCK: tl.constexpr,
):
    """Each program takes every n-th block of open chunks, then its blocks of every n-th bundle.

    With windows chunks move on: they begin at the first token that any of their rows sees.
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    num_chunks = tl.load(plan_ptr + chunks_at)
    for start in tl.range(program * TASK_BLOCK, num_chunks, programs * TASK_BLOCK, num_stages=1):
        task = start + tl.arange(0, TASK_BLOCK)
        record = plan_ptr + tasks_offset + task * TASK_INTS
        row = tl.load(record + 5, mask=task < num_chunks, other=-1)
        is_open = row >= 0
        base = tl.load(record + 6, mask=is_open, other=0)
        most = tl.load(record + 7, mask=is_open, other=0)
        if WINDOW:
            is_chunk = task < num_chunks
            base = tl.load(record + 6, mask=is_chunk, other=0)
            most = tl.load(record + 7, mask=is_chunk, other=0)
            first = tl.load(record + 2, mask=is_chunk, other=0)
            queries = tl.load(record + 3, mask=is_chunk, other=0)
            shortest = tl.full([TASK_BLOCK], 2147483647, tl.int32)
            for begin in tl.range(0, tl.max(queries, 0), QUERY_BLOCK, num_stages=1):
                query = begin + tl.arange(0, QUERY_BLOCK)
                is_query = query[None, :] < queries[:, None]
                order = plan_ptr + order_offset + first[:, None] + query[None, :]
                reader = tl.load(order, mask=is_query, other=0)
                tokens = tl.load(row_lengths_ptr + reader, mask=is_query, other=2147483647)
                shortest = tl.minimum(shortest, tl.min(tokens, 1))
            left = tl.minimum(tl.maximum(shortest - WINDOW - base, 0), most)
            base += left
            most -= left
            kv_start = tl.load(record, mask=is_chunk, other=0)
            tl.store(record, kv_start + left, mask=is_chunk)
            tl.store(record + 1, most, mask=is_chunk & ~is_open)
            tl.store(record + 6, base, mask=is_chunk)
            tl.store(record + 7, most, mask=is_chunk)
        length = tl.load(row_lengths_ptr + row, mask=is_open, other=0)
        # a chunk that its row has not reached yet is empty
        now = tl.maximum(tl.minimum(length - base, most), 0)
        tl.store(record + 1, now, mask=is_open)
    if BUNDLES:
        num_tasks = tl.load(plan_ptr + tasks_at)
        share = program % PER_BUNDLE
        for task in tl.range(
            num_chunks + program // PER_BUNDLE, num_tasks, programs // PER_BUNDLE, num_stages=1
        ):
            record = plan_ptr + tasks_offset + task * TASK_INTS
            entry = tl.load(record)
            piece = tl.arange(0, MOST_PIECES)
            is_piece = piece < tl.load(record + 7)
            fields = plan_ptr + tl.load(record + 6) + piece * PIECE_INTS
            kv_start = tl.load(fields, mask=is_piece, other=0)
            most = tl.load(fields + 1, mask=is_piece, other=0)
            row = tl.load(fields + 2, mask=is_piece, other=-1)
            readers = tl.load(fields + 3, mask=is_piece, other=0)
            is_open = row >= 0
            length = tl.load(row_lengths_ptr + row, mask=is_open, other=0)
            base = tl.load(plan_ptr + append_base_offset + row, mask=is_open, other=0)
            tokens = tl.where(
                is_open, tl.maximum(tl.minimum(base + length - kv_start, most), 0), most
            )
            if WINDOW:
                # a tail's own; what its rows share in a bundle they all see, says the planner
                left = tl.minimum(tl.maximum(base + length - WINDOW - kv_start, 0), tokens)
                left = tl.where(is_open, left, 0)
                kv_start += left
                tokens -= left
            end = tl.cumsum(tokens, 0)
            begin = end - tokens
            total = tl.sum(tokens, 0)
            tl.store(record + 1, total, mask=share == 0)
            for first in tl.range(
                share * TOKEN_BLOCK, total, PER_BUNDLE * TOKEN_BLOCK, num_stages=1
            ):
                token = first + tl.arange(0, TOKEN_BLOCK)
                within = token < total
                is_here = (token[:, None] >= begin[None, :]) & (token[:, None] < end[None, :])
                source = token + tl.sum(tl.where(is_here, (kv_start - begin)[None, :], 0), 1)
                seen_by = tl.sum(tl.where(is_here, readers[None, :], 0), 1)
                if QUERY_ROWS > 1:
                    # the readers are query rows: of the newest tokens those from their own on
                    row_end = tl.where(is_open, base + length, 1 << 30)
                    newer = tl.sum(tl.where(is_here, row_end[None, :], 0), 1) - source
                    low = (seen_by & 0xFFFF) * QUERY_ROWS + tl.maximum(QUERY_ROWS - newer, 0)
                    seen_by = low + ((seen_by >> 16) * QUERY_ROWS << 16)
                slot = tl.load(kv_index_ptr + source, mask=within, other=0)
                tl.store(bundle_index_ptr + entry + token, slot, mask=within)
                tl.store(bundle_readers_ptr + entry + token, seen_by, mask=within)


def follow_lengths(
    plan: torch.Tensor,
    row_lengths: torch.Tensor,
    kv_index: torch.Tensor,
    bundle_index: torch.Tensor,
    bundle_readers: torch.Tensor,
    *,
    tasks_offset: int,
    append_base_offset: int,
    task_counts: tuple[int, int],
    most_pieces: int,
    has_bundles: bool,
    order_offset: int | None = None,
    window: int = 0,
    query_rows: int = 1,
) -> None:
    """Write the tasks' lengths for `row_lengths`, and every bundle's tokens back to back.

    Open chunks end where their rows end now; a bundle lists the KV slots of its pieces, tails as
    long as they are now, each with the queries that see it, or their query rows if they have more.

    Args:
        plan: packed plan (`PlanLayout`), int32; its task records are updated in place.
        row_lengths: int32 ``[B]``. kv_index: int32 KV slots.
        bundle_index, bundle_readers: int32, what PAC reads for a bundle (see `pac`).
        task_counts: where in the plan the number of tasks that are no bundles stands, and that of
            all tasks.
        most_pieces: pieces of a bundle, a power of two.
        order_offset: where the plan's order begins; needed for a window.
        window: newest tokens that a row sees, 0 for all. Chunks then begin at the first token that
            any of their rows sees, closed ones too: what they lose they do not get back, so
            `row_lengths` must not shrink while a plan lives.
        query_rows: newest tokens of a row that attend, each to all up to itself.

    Raises:
        ValueError: another dtype, or another number of readers than of index entries.
    """
    if not (
        plan.dtype == row_lengths.dtype == kv_index.dtype == torch.int32
        and bundle_index.dtype == bundle_readers.dtype == torch.int32
        and bundle_index.shape == bundle_readers.shape
    ):
        refuse(
            "follow_lengths",
            "int32 tensors, and readers for each entry of the bundles' index",
            plan=plan,
            row_lengths=row_lengths,
            kv_index=kv_index,
            bundle_index=bundle_index,
            bundle_readers=bundle_readers,
        )
    programs = _PROGRAMS if plan.is_cuda or plan.is_meta else _INTERPRETED_PROGRAMS
    _follow_lengths_kernel[(programs,)](
        plan,
        row_lengths,
        kv_index,
        bundle_index,
        bundle_readers,
        tasks_offset,
        append_base_offset,
        *task_counts,
        order_offset,
        WINDOW=window,
        QUERY_ROWS=query_rows,
        BUNDLES=has_bundles,
        PER_BUNDLE=min(_PER_BUNDLE, programs),
        MOST_PIECES=most_pieces,
        TASK_BLOCK=_WINDOW_TASK_BLOCK if window else _TASK_BLOCK,
        TOKEN_BLOCK=_TOKEN_BLOCK,
        QUERY_BLOCK=_QUERY_BLOCK,
        num_warps=8,
    )
