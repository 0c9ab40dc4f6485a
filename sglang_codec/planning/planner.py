"""Forest -> absorbed runs -> query tiles -> chunks -> slots -> `Plan`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sglang_codec.planning.absorption import absorb_short_runs, absorbed_starts
from sglang_codec.planning.cost_model import CostModel
from sglang_codec.planning.division import chunk_sizes
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.plan import TASK_FIELDS, Plan, PlanCapacity, PlanCapacityError, PlanSpec
from sglang_codec.planning.schedule import longest_first
from sglang_codec.planning.tape import cut_tape

# the tape first, then the division, as much finer (or coarser) than its own target, until the slots
# are busy to this share of the time; the best predicted schedule wins
_TAPE = None
_FINER = (1.0, 0.9, 2.5)
_BALANCED = 0.95
# and how much coarser when the finer plan does not fit the buffers
_COARSER = (0.5, 0.2, 0.05, 0.0)


def make_plan(
    forest: PrefixForest, spec: PlanSpec, cost_model: CostModel, capacity: PlanCapacity
) -> Plan:
    """Plan one batch.

    Raises:
        PlanCapacityError: even the coarsest plan does not fit `capacity`.
    """
    capacity.check(rows=forest.batch)
    absorbed = absorb_short_runs(
        forest, kv_token_bytes=spec.kv_token_bytes, partial_bytes=spec.partial_bytes
    )
    runs = _kv_runs(forest, absorbed, spec)
    if runs.kv_entries > capacity.kv_index and absorbed.any():
        # an absorbed run is listed once per child; unabsorbed, every token is listed once
        absorbed = np.zeros_like(absorbed)
        runs = _kv_runs(forest, absorbed, spec)
    capacity.check(kv_index=runs.kv_entries)
    items = _query_tiles(forest, runs, spec)

    best: tuple[float, _Tasks] | None = None
    refused: PlanCapacityError | None = None
    for finer in (_TAPE, *_FINER, *_COARSER):
        if best is not None and finer in _COARSER:
            break
        if finer is _TAPE:
            tasks = _cut_tape(items, runs, spec, cost_model)
        else:
            tasks = _divide(items, runs, spec, cost_model, finer)
        try:
            capacity.check(tasks=len(tasks.item), parts=tasks.num_parts)
        except PlanCapacityError as error:
            refused = error
            continue
        load = np.bincount(tasks.slot, weights=tasks.us, minlength=spec.num_slots)
        makespan = float(load.max())
        if best is None or makespan < 0.98 * best[0]:
            best = (makespan, tasks)
        if load.mean() >= _BALANCED * makespan:
            break
    if best is None:
        assert refused is not None
        raise refused
    return _assemble(forest, spec, runs, items, best[1], absorbed)


@dataclass(frozen=True, slots=True)
class _Runs:
    """The nodes that are read, with the tokens of absorbed ancestors in front."""

    node: np.ndarray  # [K] forest node
    start: np.ndarray  # [K] first token
    length: np.ndarray  # [K] tokens
    offset: np.ndarray  # [K] first entry in the KV index
    is_tail: np.ndarray  # [K]
    kv_entries: int


@dataclass(frozen=True, slots=True)
class _Items:
    """A query tile of a run: the unit that is cut along the KV axis."""

    run: np.ndarray  # [I]
    first: np.ndarray  # [I] position
    queries: np.ndarray  # [I]
    tile: np.ndarray  # [I] class index


@dataclass(frozen=True, slots=True)
class _Tasks:
    item: np.ndarray  # [T]
    begin: np.ndarray  # [T] tokens into the run
    tokens: np.ndarray  # [T]
    us: np.ndarray  # [T]
    slot: np.ndarray  # [T]
    num_parts: int


def _kv_runs(forest: PrefixForest, absorbed: np.ndarray, spec: PlanSpec) -> _Runs:
    start = absorbed_starts(forest, absorbed)
    length = forest.start + forest.length - start
    is_tail = np.arange(forest.num_nodes) >= forest.num_shared
    read = np.flatnonzero(np.append(~absorbed, np.ones(forest.batch, bool)) & (length > 0))
    entries = length[read] + np.where(is_tail[read], spec.tail_headroom, 0)
    offset = np.cumsum(entries) - entries
    return _Runs(read, start[read], length[read], offset, is_tail[read], int(entries.sum()))


def _query_tiles(forest: PrefixForest, runs: _Runs, spec: PlanSpec) -> _Items:
    capacity = np.array([rows // spec.group for rows in spec.row_tiles])
    readers = forest.readers[runs.node]
    tiles = -(-readers // capacity[-1])
    run = np.repeat(np.arange(len(tiles)), tiles)
    index = np.arange(len(run)) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    first = forest.first[runs.node][run] + index * capacity[-1]
    queries = np.minimum(forest.last[runs.node][run] - first, capacity[-1])
    return _Items(run, first, queries, np.searchsorted(capacity, queries))


def _cut_tape(items: _Items, runs: _Runs, spec: PlanSpec, cost_model: CostModel) -> _Tasks:
    rows = np.asarray(spec.row_tiles)[items.tile]
    tokens = runs.length[items.run]
    if not len(tokens):
        return _NO_TASKS
    # equally long items by their place in the sequence: who is cut must not depend on batch order
    order = np.lexsort((items.queries, runs.start[items.run]))
    item, begin, slot = cut_tape(
        rows[order],
        tokens[order],
        cost_model=cost_model,
        num_slots=spec.num_slots,
        block_kv=spec.block_kv,
    )
    item = order[item]
    end = np.append(begin[1:], 0)
    is_last = np.append(item[1:] != item[:-1], True)
    length = np.where(is_last, tokens[item], end) - begin
    us = cost_model.task_us(rows[item], length)
    chunks = np.bincount(item, minlength=len(tokens))
    return _Tasks(item, begin, length, us, slot, _num_parts(items, chunks))


def _divide(
    items: _Items, runs: _Runs, spec: PlanSpec, cost_model: CostModel, finer: float
) -> _Tasks:
    rows = np.asarray(spec.row_tiles)[items.tile]
    tokens = runs.length[items.run]
    if not len(tokens):
        return _NO_TASKS
    if finer > 0:
        size = chunk_sizes(
            rows,
            tokens,
            cost_model=cost_model,
            num_slots=spec.num_slots,
            block_kv=spec.block_kv,
            finer=finer,
        )
    else:
        size = tokens.astype(np.int64)
    chunks = -(-tokens // size)
    item = np.repeat(np.arange(len(tokens)), chunks)
    begin = (np.arange(len(item)) - np.repeat(np.cumsum(chunks) - chunks, chunks)) * size[item]
    length = np.minimum(tokens[item] - begin, size[item])
    us = cost_model.task_us(rows[item], length)
    slot, _ = longest_first(us, spec.num_slots)
    return _Tasks(item, begin, length, us, slot, _num_parts(items, chunks))


_NO_TASKS = _Tasks(*[np.zeros(0, np.int64)] * 3, np.zeros(0), np.zeros(0, np.int64), 0)


def _num_parts(items: _Items, chunks: np.ndarray) -> int:
    """Partial rows of a cut: none for a task that is all there is to every one of its rows."""
    end = items.first + items.queries
    parts_at = np.zeros(int(end.max()) + 1, np.int64)
    np.add.at(parts_at, items.first, chunks)
    np.add.at(parts_at, end, -chunks)
    more_at = np.concatenate([[0], np.cumsum(np.cumsum(parts_at) > 1)])
    needs_part = more_at[end] > more_at[items.first]
    return int((chunks * items.queries)[needs_part].sum())


def _assemble(
    forest: PrefixForest,
    spec: PlanSpec,
    runs: _Runs,
    items: _Items,
    tasks: _Tasks,
    absorbed: np.ndarray,
) -> Plan:
    # kernel order: by class, then slot, then longest first
    tile = items.tile[tasks.item]
    if spec.long_tokens is not None:
        tile = np.where((tile == 0) & (tasks.tokens >= spec.long_tokens), len(spec.row_tiles), tile)
    by_slot = np.lexsort((-tasks.us, tasks.slot, tile))
    slot, tile = tasks.slot[by_slot].astype(np.int32), tile[by_slot]
    item, begin, tokens = tasks.item[by_slot], tasks.begin[by_slot], tasks.tokens[by_slot]
    run = items.run[item]
    first, queries = items.first[item], items.queries[item]
    num_tasks = len(item)

    # the last chunk of a tail is open: its length follows the row's own
    row = forest.order[first] if num_tasks else np.zeros(0, np.int32)
    is_open = runs.is_tail[run] & (begin + tokens == runs.length[run]) & (spec.tail_headroom > 0)
    table = np.zeros((num_tasks, len(TASK_FIELDS)), np.int32)
    table[:, 0] = runs.offset[run] + begin
    table[:, 1] = tokens + np.where(is_open, spec.tail_headroom, 0)
    table[:, 2] = first
    table[:, 3] = queries
    table[:, 5] = np.where(is_open, row, -1)
    table[:, 6] = runs.start[run] + begin

    # a task that is all there is to every one of its rows writes the output itself
    parts_at = np.zeros(forest.batch + 1, np.int64)
    np.add.at(parts_at, first, 1)
    np.add.at(parts_at, first + queries, -1)
    more_at = np.concatenate([[0], np.cumsum(np.cumsum(parts_at)[:-1] > 1)])
    needs_part = more_at[first + queries] > more_at[first]
    reserved = np.where(needs_part, queries, 0)
    table[:, 4] = np.where(needs_part, np.cumsum(reserved) - reserved, -1)

    of_task = np.repeat(np.arange(num_tasks), queries)
    nth = np.arange(len(of_task)) - np.repeat(np.cumsum(queries) - queries, queries)
    part = np.where(needs_part[of_task], table[of_task, 4] + nth, -1)
    part_row = forest.order[first[of_task] + nth] if len(of_task) else np.zeros(0, np.int32)
    token_order = np.lexsort((table[of_task, 6], part_row))
    part_indptr = np.zeros(forest.batch + 1, np.int32)
    np.cumsum(np.bincount(part_row, minlength=forest.batch), out=part_indptr[1:])

    slot_indptr = np.zeros((spec.num_classes, spec.num_slots + 1), np.int64)
    np.add.at(slot_indptr, (tile, slot + 1), 1)
    slot_indptr = np.cumsum(slot_indptr, axis=1)
    slot_indptr += np.concatenate([[0], np.cumsum(slot_indptr[:-1, -1])])[:, None]

    append_base = np.full(forest.batch, -1, np.int32)
    tails = np.flatnonzero(runs.is_tail)
    tail_rows = forest.order[forest.first[runs.node[tails]]]
    append_base[tail_rows] = runs.offset[tails] - runs.start[tails]
    max_lengths = forest.lengths.copy()
    max_lengths[tail_rows] += spec.tail_headroom

    return Plan(
        order=forest.order,
        tasks=table,
        slot_indptr=slot_indptr.astype(np.int32),
        part_indptr=part_indptr,
        part_rows=part[token_order].astype(np.int32),
        num_parts=int(reserved.sum()),
        append_base=append_base,
        max_lengths=max_lengths,
        spans=np.stack(
            [forest.order[forest.first[runs.node]], runs.start, runs.length, runs.offset], axis=1
        ).astype(np.int32),
        kv_entries=runs.kv_entries,
        node=runs.node[run].astype(np.int32),
        start=table[:, 6].copy(),
        slot=slot,
        us=tasks.us[by_slot],
        row_tiles=spec.row_tiles,
        absorbed=absorbed,
        lengths=forest.lengths,
    )


def kv_index_of(forest: PrefixForest, plan: Plan) -> np.ndarray:
    """int32 ``[plan.kv_entries]``: the KV index of a forest that carries its slots.

    Raises:
        ValueError: the forest was built without slots.
    """
    if forest.kv_slots is None:
        raise ValueError(
            "this forest has no KV slots: build it with PrefixForest.from_paths or from_kv_indices"
        )
    if not plan.absorbed.any() and plan.kv_entries == len(forest.kv_slots):
        return forest.kv_slots
    out = np.zeros(plan.kv_entries, np.int32)
    position = np.empty(forest.batch, np.int64)
    position[forest.order] = np.arange(forest.batch)
    # every span copies its own node, and the absorbed ancestors that its first tokens come from
    row, start, length, entry = plan.spans.T.astype(np.int64)
    end = start + length
    node = _nodes_ending_at(forest, position[row], end)
    while len(node):
        begin = forest.start[node]
        _copy_runs(out, entry + begin - start, forest.kv_slots, forest.kv_offset[node], end - begin)
        more = begin > start
        node, start, entry, end = forest.parent[node][more], start[more], entry[more], begin[more]
    return out


def _nodes_ending_at(forest: PrefixForest, position: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The node on each position's path that ends at token `end` (the shortest-lived one)."""
    node = forest.num_shared + position
    ends = forest.start + forest.length
    while True:
        # an empty tail, or a tail behind the run in question
        beyond = (forest.start[node] >= end) | (ends[node] != end)
        if not beyond.any():
            return node
        node = np.where(beyond, forest.parent[node], node)


def _copy_runs(
    out: np.ndarray, target: np.ndarray, source: np.ndarray, offset: np.ndarray, length: np.ndarray
) -> None:
    within = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
    out[np.repeat(target, length) + within] = source[np.repeat(offset, length) + within]
