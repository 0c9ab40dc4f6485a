"""Forest -> bundles and runs -> query tiles -> chunks -> slots -> `Plan`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from sglang_codec.planning.assembly import Bundles, Items, Tasks, assemble
from sglang_codec.planning.bundles import Units, bundle_tails
from sglang_codec.planning.cost_model import CostModel
from sglang_codec.planning.division import chunk_sizes
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.plan import (
    MOST_PIECES,
    Plan,
    PlanCapacity,
    PlanCapacityError,
    PlanSpec,
    aligned,
)
from sglang_codec.planning.reading import Reading, read_plan
from sglang_codec.planning.schedule import longest_first
from sglang_codec.planning.tape import cut_tape

# the tape first, then the division, as much finer (or coarser) than its own target, until the slots
# are busy to this share of the time; the best predicted schedule wins
_TAPE = None
_FINER = (1.0, 0.9, 2.5)
_BALANCED = 0.95
# bundles that leave slots idle for more than the rest of this are compared with no bundles
_GOOD = 0.9
# and how much coarser when the finer plan does not fit the buffers
_COARSER = (0.5, 0.2, 0.05, 0.0)


# (rows [I], tokens [I], busy [num_slots]) -> item, begin, tokens, slot of each task
Cut = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, ...]]


def make_plan(
    forest: PrefixForest,
    spec: PlanSpec,
    cost_model: CostModel,
    capacity: PlanCapacity,
    cut: Cut | None = None,
) -> Plan:
    """Plan one batch.

    Args:
        cut: divides the query tiles and schedules their chunks instead of the planner itself; for
            comparisons of methods.

    Raises:
        PlanCapacityError: even the coarsest plan does not fit `capacity`.
        ValueError: the arrays of `forest` are no forest.
    """
    forest = forest.checked()
    capacity.check(rows=forest.batch)
    best: Candidate | None = None
    refused: PlanCapacityError | None = None
    for reading in _readings(forest, spec, cost_model):
        try:
            _check_reading(reading, spec, capacity)
            candidate = schedule_reading(reading, spec, cost_model, capacity, forest.batch, cut)
        except PlanCapacityError as error:
            refused = error
            continue
        if best is None or candidate.makespan < best.makespan:
            best = candidate
        if candidate.balance >= _GOOD or not len(reading.bundle_first):
            break
    if best is None:
        assert refused is not None
        raise refused
    return assemble(forest, spec, best.reading, best.items, best.bundles, best.tasks, best.parts)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to read the forest, scheduled."""

    reading: Reading
    items: Items
    bundles: Bundles
    tasks: Tasks
    parts: np.ndarray  # bool [T]: the task leaves a partial result
    makespan: float  # microseconds
    balance: float  # mean load over the longest


def _readings(forest: PrefixForest, spec: PlanSpec, cost_model: CostModel) -> Iterator[Reading]:
    """Ways to read the forest, the most promising first.

    An absorbed run is listed once per child and a run that ends in a bundle once more; without
    either, every token is listed once.
    """
    units = bundle_tails(forest, spec, cost_model)
    yield read_plan(forest, units, spec, absorb=True)
    single = Units.single(forest.batch)
    if units.bundled.any():
        yield read_plan(forest, single, spec, absorb=True)
    yield read_plan(forest, single, spec, absorb=False)


def _check_reading(reading: Reading, spec: PlanSpec, capacity: PlanCapacity) -> None:
    pieces = reading.pieces
    most = int(np.bincount(pieces.bundle).max(initial=0))
    if most > MOST_PIECES:
        raise PlanCapacityError(f"a bundle of {most} pieces; at most {MOST_PIECES} are possible")
    entries = np.bincount(pieces.bundle, pieces.length + pieces.is_tail * spec.tail_headroom)
    bundle_entries = int(aligned(entries.astype(np.int64)).sum())
    capacity.check(kv_index=reading.kv_entries, bundle_index=bundle_entries)


def schedule_reading(
    reading: Reading,
    spec: PlanSpec,
    cost_model: CostModel,
    capacity: PlanCapacity,
    batch: int,
    given: Cut | None = None,
) -> Candidate:
    """The best of some schedules of one way to read the forest.

    Raises:
        PlanCapacityError: not even uncut runs fit `capacity`.
    """
    items = _query_tiles(reading, spec)
    bundles = _place_bundles(reading, spec, cost_model)
    best: Candidate | None = None
    refused: PlanCapacityError | None = None
    for finer in (_TAPE,) if given else (_TAPE, *_FINER, *_COARSER):
        if best is not None and finer in _COARSER:
            break
        cut = _cut_tape if finer is _TAPE else _divide
        if given:
            item, begin, tokens, slot = given(items.rows, items.tokens, bundles.busy)
            us = cost_model.task_us(items.rows[item], tokens)
            tasks = _with_bundles(items, bundles, item, begin, tokens, us, slot)
        else:
            tasks = cut(items, bundles, spec, cost_model, finer)
        parts = _needs_part(tasks, batch)
        try:
            capacity.check(tasks=len(tasks.us), parts=int(tasks.queries[parts].sum()))
        except PlanCapacityError as error:
            refused = error
            continue
        load = np.bincount(tasks.slot, weights=tasks.us, minlength=spec.num_slots)
        makespan = float(load.max())
        balance = float(load.mean()) / makespan if makespan else 1.0
        if best is None or makespan < 0.98 * best.makespan:
            best = Candidate(reading, items, bundles, tasks, parts, makespan, balance)
        if balance >= _BALANCED:
            break
    if best is None:
        assert refused is not None
        raise refused
    return best


def _query_tiles(reading: Reading, spec: PlanSpec) -> Items:
    runs, row_tiles = reading.runs, np.asarray(spec.row_tiles)
    capacity = row_tiles // spec.group
    tiles = -(-(runs.last - runs.first) // capacity[-1])
    run = np.repeat(np.arange(len(tiles)), tiles)
    index = np.arange(len(run)) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    first = runs.first[run] + index * capacity[-1]
    queries = np.minimum(runs.last[run] - first, capacity[-1])
    tile = np.searchsorted(capacity, queries)
    return Items(run, first, queries, tile, row_tiles[tile], runs.start[run], runs.length[run])


def _cut_tape(
    items: Items, bundles: Bundles, spec: PlanSpec, cost_model: CostModel, _: None
) -> Tasks:
    rows, tokens = items.rows, items.tokens
    if not len(tokens):
        return _with_bundles(items, bundles, _NONE, _NONE, _NONE, np.zeros(0), _NONE)
    # equally long items by their place in the sequence: who is cut must not depend on batch order
    order = np.lexsort((items.queries, items.start))
    item, begin, slot = cut_tape(
        rows[order],
        tokens[order],
        cost_model=cost_model,
        busy=bundles.busy,
        block_kv=spec.block_kv,
    )
    item = order[item]
    end = np.append(begin[1:], 0)
    is_last = np.append(item[1:] != item[:-1], True)
    length = np.where(is_last, tokens[item], end) - begin
    us = cost_model.task_us(rows[item], length)
    return _with_bundles(items, bundles, item, begin, length, us, slot)


def _divide(
    items: Items, bundles: Bundles, spec: PlanSpec, cost_model: CostModel, finer: float
) -> Tasks:
    rows, tokens = items.rows, items.tokens
    if not len(tokens):
        return _with_bundles(items, bundles, _NONE, _NONE, _NONE, np.zeros(0), _NONE)
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
    slot, _ = longest_first(np.concatenate([us, bundles.us]), spec.num_slots)
    return _with_bundles(
        items, replace(bundles, slot=slot[len(us) :]), item, begin, length, us, slot[: len(us)]
    )


_NONE = np.zeros(0, np.int64)


def _with_bundles(
    items: Items,
    bundles: Bundles,
    item: np.ndarray,
    begin: np.ndarray,
    tokens: np.ndarray,
    us: np.ndarray,
    slot: np.ndarray,
) -> Tasks:
    return Tasks(
        item,
        begin,
        np.concatenate([items.first[item], bundles.first]),
        np.concatenate([items.queries[item], bundles.queries]),
        np.concatenate([tokens, bundles.tokens]),
        np.concatenate([us, bundles.us]),
        np.concatenate([slot, bundles.slot]),
    )


def _place_bundles(reading: Reading, spec: PlanSpec, cost_model: CostModel) -> Bundles:
    first, pieces = reading.bundle_first, reading.pieces
    tokens = np.bincount(pieces.bundle, weights=pieces.length, minlength=len(first))
    tails = np.bincount(pieces.bundle, weights=pieces.is_tail, minlength=len(first))
    tokens = tokens.astype(np.int64)
    us = cost_model.task_us(np.full(len(first), spec.bundle_rows), tokens)
    slot, busy = longest_first(us, spec.num_slots)
    most = aligned(tokens + tails.astype(np.int64) * spec.tail_headroom)
    return Bundles(first, reading.bundle_last - first, tokens, most, us, slot, busy)


def _needs_part(tasks: Tasks, batch: int) -> np.ndarray:
    """bool ``[T]``: all but the tasks that are all there is to every one of their rows."""
    parts_at = np.bincount(tasks.first, minlength=batch + 1)
    parts_at -= np.bincount(tasks.first + tasks.queries, minlength=batch + 1)
    more_at = np.zeros(batch + 1, np.int64)
    np.cumsum(np.cumsum(parts_at[:-1]) > 1, out=more_at[1:])
    return more_at[tasks.first + tasks.queries] > more_at[tasks.first]
