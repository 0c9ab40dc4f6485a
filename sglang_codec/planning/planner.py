"""Forest -> absorbed runs -> query tiles -> chunks -> slots -> `Plan`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from sglang_codec.planning.absorption import absorb_short_runs, absorbed_starts
from sglang_codec.planning.cost_model import CostModel
from sglang_codec.planning.division import chunk_sizes
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.plan import (
    TASK_FIELDS,
    Plan,
    PlanCapacity,
    PlanCapacityError,
    PlanSpec,
    TaskClass,
)
from sglang_codec.planning.schedule import longest_first

# how much finer than the division's own target to cut; the best predicted schedule wins
_FINER = (1.0, 2.5, 0.9)
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

    refused: PlanCapacityError | None = None
    for finest in (_FINER, *((coarser,) for coarser in _COARSER)):
        tasks = _best_tasks(items, runs, spec, cost_model, finest)
        try:
            capacity.check(tasks=len(tasks.item), parts=tasks.num_parts)
        except PlanCapacityError as error:
            refused = error
            continue
        return _assemble(forest, spec, runs, items, tasks, absorbed)
    assert refused is not None
    raise refused


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
    """Chunks of items with their slots; `concatenate` joins those of several classes."""

    item: np.ndarray  # [T]
    begin: np.ndarray  # [T] tokens into the run
    tokens: np.ndarray  # [T]
    us: np.ndarray  # [T]
    slot: np.ndarray  # [T]
    num_parts: int

    @classmethod
    def concatenate(cls, several: list[_Tasks]) -> _Tasks:
        columns = zip(*((t.item, t.begin, t.tokens, t.us, t.slot) for t in several), strict=True)
        return cls(*map(np.concatenate, columns), sum(t.num_parts for t in several))


def _kv_runs(forest: PrefixForest, absorbed: np.ndarray, spec: PlanSpec) -> _Runs:
    start = absorbed_starts(forest, absorbed)
    length = forest.start + forest.length - start
    is_tail = np.arange(forest.num_nodes) >= forest.num_shared
    # an empty tail is read only where the row has nothing else
    wanted = (length > 0) | (is_tail & (forest.start + forest.length == 0))
    read = np.flatnonzero(np.append(~absorbed, np.ones(forest.batch, bool)) & wanted)
    entries = length[read] + np.where(is_tail[read], spec.tail_headroom, 0)
    offset = np.cumsum(entries) - entries
    return _Runs(read, start[read], length[read], offset, is_tail[read], int(entries.sum()))


def _query_tiles(forest: PrefixForest, runs: _Runs, spec: PlanSpec) -> _Items:
    capacity = np.array([c.rows // spec.group for c in spec.classes])
    readers = forest.readers[runs.node]
    tiles = -(-readers // capacity[-1])
    run = np.repeat(np.arange(len(tiles)), tiles)
    index = np.arange(len(run)) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    first = forest.first[runs.node][run] + index * capacity[-1]
    queries = np.minimum(forest.last[runs.node][run] - first, capacity[-1])
    return _Items(run, first, queries, np.searchsorted(capacity, queries))


def _best_tasks(
    items: _Items, runs: _Runs, spec: PlanSpec, cost_model: CostModel, finest: tuple[float, ...]
) -> _Tasks:
    """Cut and schedule each class on its own, with the granularity that gives the least makespan."""
    by_class = []
    first_slot = 0
    for index, task_class in enumerate(spec.classes):
        of_class = np.flatnonzero(items.tile == index)
        best: tuple[float, _Tasks] | None = None
        for finer in finest:
            tasks = _cut(of_class, items, runs, task_class, cost_model, finer)
            slot, load = longest_first(tasks.us, task_class.num_slots)
            makespan = float(load.max(initial=0.0))
            if best is None or makespan < 0.98 * best[0]:
                best = (makespan, dataclasses.replace(tasks, slot=slot + first_slot))
        by_class.append(best[1])
        first_slot += task_class.num_slots
    return _Tasks.concatenate(by_class)


def _cut(
    of_class: np.ndarray,
    items: _Items,
    runs: _Runs,
    task_class: TaskClass,
    cost_model: CostModel,
    finer: float,
) -> _Tasks:
    tokens = runs.length[items.run[of_class]]
    if finer > 0 and len(tokens):
        size = chunk_sizes(
            np.full(len(tokens), task_class.rows),
            np.maximum(tokens, 1),
            cost_model=cost_model,
            num_slots=task_class.num_slots,
            block_kv=task_class.block_kv,
            finer=finer,
        )
    else:
        size = np.maximum(tokens, 1).astype(np.int64)
    chunks = np.maximum(-(-tokens // size), 1)  # a row without tokens still has an (empty) part
    local = np.repeat(np.arange(len(tokens)), chunks)
    begin = (np.arange(len(local)) - np.repeat(np.cumsum(chunks) - chunks, chunks)) * size[local]
    length = np.minimum(tokens[local] - begin, size[local])
    item = of_class[local]
    us = cost_model.task_us(np.full(len(local), task_class.rows), length)
    slot = np.zeros(len(local), np.int32)
    return _Tasks(item, begin, length, us, slot, int(items.queries[item].sum()))


def _assemble(
    forest: PrefixForest,
    spec: PlanSpec,
    runs: _Runs,
    items: _Items,
    tasks: _Tasks,
    absorbed: np.ndarray,
) -> Plan:
    # kernel order: by slot (and so by class), longest first
    by_slot = np.lexsort((-tasks.us, tasks.slot))
    slot = tasks.slot[by_slot]
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

    table[:, 4] = np.cumsum(queries) - queries

    of_task = np.repeat(np.arange(num_tasks), queries)
    nth = np.arange(len(of_task)) - np.repeat(np.cumsum(queries) - queries, queries)
    part = table[of_task, 4] + nth
    part_row = forest.order[first[of_task] + nth] if len(of_task) else np.zeros(0, np.int32)
    token_order = np.lexsort((table[of_task, 6], part_row))
    part_indptr = np.zeros(forest.batch + 1, np.int32)
    np.cumsum(np.bincount(part_row, minlength=forest.batch), out=part_indptr[1:])

    # slots are numbered through the classes; each class has one more entry than slots
    tasks_before = np.concatenate([[0], np.cumsum(np.bincount(slot, minlength=spec.num_slots))])
    bounds = np.cumsum([0, *(c.num_slots for c in spec.classes)])
    slot_indptr = np.concatenate(
        [tasks_before[a : b + 1] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    )

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
        num_parts=tasks.num_parts,
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
        classes=spec.classes,
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
