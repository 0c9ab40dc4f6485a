"""A plan without sharing by the simplest code there is: for a batch on which the planners fail."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from sglang_codec.planning.border import int32_array
from sglang_codec.planning.plan import PIECE_FIELDS, Plan, PlanSpec, aligned
from sglang_codec.planning.windows import no_tail


def plain_plan(lengths: np.ndarray, spec: PlanSpec) -> Plan:
    """Every row reads its own tokens in one task; the slots take the rows in turn, longest first.

    It fits where the lengths, each with headroom, are not more together than the KV index has
    entries: rows that share much may not. The part lists and spans always do.

    Args:
        lengths: int ``[B]``, KV tokens of each row.
    """
    lengths = int32_array("lengths", lengths)
    if (lengths < 0).any():
        raise ValueError(f"lengths must be 0 or more, got {int(lengths.min())}")
    batch, slots, window = len(lengths), spec.num_slots, spec.shape.seen_tokens
    seen = np.minimum(lengths, window).astype(np.int64) if window else lengths.astype(np.int64)
    edge = lengths - seen
    entries = aligned(seen + np.where(lengths, spec.tail_headroom, 0))
    offset = np.cumsum(entries) - entries

    row = np.argsort(-seen, kind="stable")[: np.count_nonzero(lengths)]
    slot = np.arange(len(row)) % slots
    row, slot = row[np.argsort(slot, kind="stable")], np.sort(slot)
    tokens = seen[row]
    direct, nothing = np.full_like(row, -1), np.zeros_like(row)
    open_row = row if spec.tail_headroom or spec.shape.query_rows > 1 else direct
    table = (offset[row], tokens, row, nothing + 1, direct, open_row, edge[row])
    slot_indptr = np.full((spec.num_classes, slots + 1), len(row), np.int32)
    smallest = bisect_left(spec.row_tiles, spec.shape.request_rows)  # class of tiles that fit
    slot_indptr[:smallest] = 0
    slot_indptr[smallest] = np.searchsorted(slot, np.arange(slots + 1))
    no_pieces = np.zeros(0, np.int32)
    return Plan(
        order=np.arange(batch, dtype=np.int32),
        tasks=np.stack([*table, tokens + spec.tail_headroom], axis=1).astype(np.int32),
        pieces=np.zeros((0, len(PIECE_FIELDS)), np.int32),
        slot_indptr=slot_indptr,
        part_indptr=np.append(0, np.cumsum(lengths > 0)).astype(np.int32),
        part_rows=np.full(len(row), -1, np.int32),
        num_parts=0,
        append_base=np.where(lengths, offset - edge, no_tail(window)).astype(np.int32),
        max_lengths=np.where(lengths, lengths + spec.tail_headroom, 0).astype(np.int32),
        spans=np.stack([row, edge[row], tokens, offset[row]], axis=1).astype(np.int32),
        kv_entries=int(entries.sum()),
        bundle_entries=0,
        node=row.astype(np.int32),
        start=edge[row].astype(np.int32),
        piece_node=no_pieces,
        piece_start=no_pieces,
        slot=slot.astype(np.int32),
        us=tokens.astype(np.float64),
        row_tiles=spec.row_tiles,
        absorbed=np.zeros(0, bool),
        lengths=lengths,
        window=window,
    )
