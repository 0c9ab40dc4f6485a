"""Tasks -> `Plan`: flat arrays in the order in which the kernels read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.plan import PIECE_FIELDS, TASK_FIELDS, Plan, PlanSpec
from sglang_codec.planning.reading import Pieces, Reading

_BEHIND_ALL = 2**31  # tokens


@dataclass(frozen=True, slots=True)
class Items:
    """A query tile of a run: the unit that is cut along the KV axis."""

    run: np.ndarray  # [I]
    first: np.ndarray  # [I] position
    queries: np.ndarray  # [I]
    tile: np.ndarray  # [I] class index
    rows: np.ndarray  # [I] M side of the tile
    start: np.ndarray  # [I] first token
    tokens: np.ndarray  # [I]


@dataclass(frozen=True, slots=True)
class Bundles:
    """The tasks that are not cut, as they have been scheduled."""

    first: np.ndarray  # [N] position
    queries: np.ndarray  # [N]
    tokens: np.ndarray  # [N] planned
    most: np.ndarray  # [N] entries: tokens with headroom, rounded up
    us: np.ndarray  # [N]
    slot: np.ndarray  # [N]
    busy: np.ndarray  # [num_slots] microseconds


@dataclass(frozen=True, slots=True)
class Tasks:
    """Chunks of items, and behind them the bundles."""

    item: np.ndarray  # [T - N]
    begin: np.ndarray  # [T - N] tokens into the run
    first: np.ndarray  # [T] position
    queries: np.ndarray  # [T]
    tokens: np.ndarray  # [T] planned
    us: np.ndarray  # [T]
    slot: np.ndarray  # [T]


def assemble(
    forest: PrefixForest,
    spec: PlanSpec,
    reading: Reading,
    items: Items,
    bundles: Bundles,
    tasks: Tasks,
    needs_part: np.ndarray,
) -> Plan:
    """Sort the tasks and write down everything that the device is told.

    Args:
        needs_part: bool ``[T]``, the task leaves a partial result instead of writing the output.
    """
    runs, num_chunks, num_tasks = reading.runs, len(tasks.item), len(tasks.us)
    # kernel order: by class, then slot, then longest first; the bundles are the last class
    kind = np.full(num_tasks, len(spec.row_tiles))
    kind[:num_chunks] = items.tile[tasks.item]
    kind *= spec.num_slots
    kind += tasks.slot
    in_order = np.lexsort((-tasks.us, kind))
    chunk, bundle = in_order[:num_chunks], in_order[num_chunks:] - num_chunks
    first, queries = tasks.first[in_order], tasks.queries[in_order]
    needs_part = needs_part[in_order]

    item, begin, tokens = tasks.item[chunk], tasks.begin[chunk], tasks.tokens[chunk]
    run = items.run[item]
    # the last chunk of a tail is open: its length follows the row's own
    is_open = runs.is_tail[run] & (begin + tokens == items.tokens[item])
    is_open &= spec.tail_headroom > 0
    start = items.start[item] + begin
    most = bundles.most[bundle]
    piece_indptr = np.zeros(len(bundles.first) + 1, np.int64)
    np.cumsum(np.bincount(reading.pieces.bundle, minlength=len(bundle)), out=piece_indptr[1:])

    table = np.empty((num_tasks, len(TASK_FIELDS)), np.int32)
    chunks, of_bundles = table[:num_chunks], table[num_chunks:]
    chunks[:, 0] = runs.offset[run] + begin
    of_bundles[:, 0] = np.cumsum(most) - most
    table[:, 1] = tasks.tokens[in_order]
    table[:, 2] = first
    table[:, 3] = queries
    reserved = np.where(needs_part, queries, 0)
    table[:, 4] = np.where(needs_part, np.cumsum(reserved) - reserved, -1)
    chunks[:, 5] = np.where(is_open, forest.order[first[:num_chunks]], -1)
    chunks[:, 6] = start
    chunks[:, 7] = tokens + np.where(is_open, spec.tail_headroom, 0)
    of_bundles[:, 5] = -1
    of_bundles[:, 6] = piece_indptr[bundle]
    of_bundles[:, 7] = np.diff(piece_indptr)[bundle]

    task_start = np.append(start, np.full(len(bundle), _BEHIND_ALL))
    part_indptr, part_rows = _part_lists(forest, first, queries, table[:, 4], task_start)
    ends = np.zeros(spec.num_classes * spec.num_slots + 1, np.int32)
    np.cumsum(np.bincount(kind, minlength=len(ends) - 1), out=ends[1:])
    by_class = np.arange(spec.num_classes)[:, None] * spec.num_slots
    has_tail = reading.tail_base >= 0
    tail_rows = forest.order[has_tail]
    append_base = np.full(forest.batch, -1, np.int32)
    append_base[forest.order] = np.where(has_tail, reading.tail_base, -1)
    max_lengths = forest.lengths.copy()
    max_lengths[tail_rows] += spec.tail_headroom
    return Plan(
        order=forest.order,
        tasks=table,
        pieces=_piece_table(forest, spec, reading.pieces, bundles.first),
        slot_indptr=ends[by_class + np.arange(spec.num_slots + 1)],
        part_indptr=part_indptr,
        part_rows=part_rows,
        num_parts=int(reserved.sum()),
        append_base=append_base,
        max_lengths=max_lengths,
        spans=reading.spans.astype(np.int32),
        kv_entries=reading.kv_entries,
        bundle_entries=int(most.sum()),
        node=np.append(runs.node[run], np.full(len(bundle), -1)).astype(np.int32),
        start=np.append(start, np.zeros(len(bundle), np.int64)).astype(np.int32),
        piece_node=reading.pieces.node,
        piece_start=reading.pieces.start,
        slot=tasks.slot[in_order].astype(np.int32),
        us=tasks.us[in_order],
        row_tiles=spec.row_tiles,
        absorbed=reading.absorbed,
        lengths=forest.lengths,
    )


def _part_lists(
    forest: PrefixForest,
    first: np.ndarray,
    queries: np.ndarray,
    part: np.ndarray,
    start: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Per batch row its partial rows in token order, a bundle's last; -1 for a direct result."""
    task = np.repeat(np.arange(len(first)), queries)
    nth = np.arange(len(task)) - np.repeat(np.cumsum(queries) - queries, queries)
    row = forest.order[first[task] + nth]
    token_order = np.lexsort((start[task], row))
    partial = np.where(part[task] < 0, -1, part[task] + nth)
    indptr = np.zeros(forest.batch + 1, np.int32)
    np.cumsum(np.bincount(row, minlength=forest.batch), out=indptr[1:])
    return indptr, partial[token_order].astype(np.int32)


def _piece_table(
    forest: PrefixForest, spec: PlanSpec, pieces: Pieces, bundle_first: np.ndarray
) -> np.ndarray:
    table = np.empty((len(pieces.bundle), len(PIECE_FIELDS)), np.int32)
    is_open = pieces.is_tail & (spec.tail_headroom > 0)
    row = forest.order[bundle_first[pieces.bundle] + pieces.low]
    table[:, 0] = pieces.offset
    table[:, 1] = pieces.length + np.where(is_open, spec.tail_headroom, 0)
    table[:, 2] = np.where(is_open, row, -1)
    table[:, 3] = pieces.low + (pieces.high << 16)
    return table
