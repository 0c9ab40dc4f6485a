"""The last resort: a plan that fits for every batch, with the sharing that the buffers allow."""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from sglang_codec.planning.capacity import FANS
from sglang_codec.planning.cost_model import CostModel
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.heavy_paths import HeavyPaths
from sglang_codec.planning.plan import (
    ALIGNED_ENTRIES,
    Plan,
    PlanCapacity,
    PlanSpec,
    aligned,
)
from sglang_codec.planning.planner import GivenRuns, Planner
from sglang_codec.planning.tables import RUN, SPAN
from sglang_codec.planning.windows import no_tail

_LEVELS = 24  # of the price of a part, each twice the one before


def frugal_plan(
    forest: PrefixForest, spec: PlanSpec, cost_model: CostModel, capacity: PlanCapacity
) -> Plan:
    """Plan a batch that fits no other plan.

    The KV index lists the tokens of whole `HeavyPaths` back to back, so that a row reads one range
    of tokens in each path on its way to the root, however many runs that range is made of. A path
    may be cut: what lies above a cut is read once for all rows that go on, at one more partial
    result for each of them. The cuts are those that save most tokens at a given price of a partial
    result, and the price is the lowest at which the plan fits. Without any cut it always does, see
    `capacity_for`.

    Raises:
        PlanCapacityError: `capacity` is none of `capacity_for`, or the forest has more tokens than
            the pool: rows hold the same slots without the forest saying so.
        ValueError: the arrays of `forest` are no forest.
    """
    forest = forest.checked()
    capacity.check(rows=forest.batch)
    paths, widest = HeavyPaths.of(forest), spec.row_tiles[-1] // spec.shape.request_rows
    # more copies of a token cost entries of the index only
    for fan in FANS:
        uncut = _reading(forest, spec, paths, _cut(forest, paths, math.inf, fan, widest))
        if uncut.kv_entries <= capacity.kv_index:
            break
    capacity.check(kv_index=uncut.kv_entries)

    @functools.cache
    def at_price(level: int) -> GivenRuns:
        if level == _LEVELS:
            return uncut
        price = 2 * spec.shape.partial_bytes / spec.shape.kv_token_bytes * 2**level
        return _reading(forest, spec, paths, _cut(forest, paths, price, fan, widest))

    def lowest_price(room: int) -> int:
        return bisect_left(
            range(_LEVELS), True, key=lambda level: _fits(at_price(level), capacity, room)
        )

    # dividing a task along the tokens takes parts too, about one tile for each slot
    rooms = (spec.num_slots * widest, spec.num_slots * widest // 4, 0)
    planner = Planner(spec, cost_model, capacity)
    levels = sorted(set(map(lowest_price, rooms)))
    plans = [planner.make_plan(forest, at_price(level)) for level in levels]
    return min(plans, key=lambda plan: plan.makespan_us)


@dataclass(frozen=True, slots=True)
class _Cuts:
    """Where the ranges begin.

    Args:
        base: int64 ``[B]``, first token that each path lists.
        is_cut: bool ``[N]``, the rows at this place read what is above the cut together.
        begin: int64 ``[N]``, token at which the range that each place lies in begins.
        after: int64 ``[N]``, the same behind the place's own cut, where it has one.
        is_copied: bool ``[B]``, the path begins as the range does that it leaves.
    """

    base: np.ndarray
    is_cut: np.ndarray
    begin: np.ndarray
    after: np.ndarray
    is_copied: np.ndarray


def _cut(forest: PrefixForest, paths: HeavyPaths, price: float, fan: int, widest: int) -> _Cuts:
    """The cuts that save most, a part being worth `price` tokens, and the clusters of a fan."""
    nodes, batch = len(paths.node), len(paths.above)
    is_cut, begin, after = np.zeros(nodes, bool), np.zeros(nodes, np.int64), [0] * nodes
    base, is_copied = forest.start[paths.node[paths.top[:-1]]].tolist(), [False] * batch
    root = [0] * batch  # readers at the root of the path's cluster
    top, path_of, end = paths.top.tolist(), paths.path.tolist(), paths.end.tolist()
    readers = paths.readers.tolist()
    for path, above in enumerate(paths.above.tolist()):
        low, high = top[path], top[path + 1]
        root[path] = readers[low]
        if above >= 0:
            cluster = root[path_of[above]]
            base[path] = end[above]
            if is_cut[above]:
                # the cut may lie some tokens above the end: those are listed again
                is_copied[path], base[path] = True, after[above]
            elif fan * root[path] > cluster:
                is_copied[path], base[path], root[path] = True, after[above], cluster
        begin[low:high] = base[path]
        if high - low == 1:
            continue
        at, start = slice(low, high), base[path]
        after[at] = [start] * (high - low)
        if price < math.inf:
            cut_at = start + (paths.end[at] - start) // ALIGNED_ENTRIES * ALIGNED_ENTRIES
            is_cut[at] = _best_cuts(paths, at, start, cut_at, price, widest)
            reached = np.maximum.accumulate(np.where(is_cut[at], cut_at, start))
            begin[low + 1 : high] = reached[:-1]
            after[at] = reached.tolist()
    base, after = np.array(base, np.int64), np.array(after, np.int64)
    return _Cuts(base, is_cut, begin, after, np.array(is_copied, bool))


def _best_cuts(
    paths: HeavyPaths, at: slice, base: int, cut_at: np.ndarray, price: float, widest: int
) -> np.ndarray:
    """bool: the places of a path below which to cut, by dynamic programming from its top down.

    A cut costs each row that stays on the path a part. It saves that what is above it is read once
    more by every group of rows that leaves the path behind it, and by the next cut.
    """
    end, readers, onward = paths.end[at], paths.readers[at], paths.onward[at]
    last = len(end) - 1
    leaving = -(-(readers - onward) // widest)
    leaving[last] = 0
    tiles = -(-readers // widest)
    # of the places before each one: the tiles that leave, and where
    before = np.concatenate([[0], np.cumsum(leaving)[:-1]])
    tokens_before = np.concatenate([[0], np.cumsum(leaving * end)[:-1]])
    # state 0 is the path's top, state i + 1 a cut below place i
    origin = np.concatenate([[base], cut_at[:-1]])
    fixed = np.zeros(last + 1)
    came_from = np.zeros(last + 1, np.int64)
    for place in range(last + 1):
        weight = before[place] + tiles[place]
        costs = fixed[: place + 1] - origin[: place + 1] * weight
        came_from[place] = best = int(np.argmin(costs))
        if place < last:
            cost = costs[best] + tiles[place] * cut_at[place] + price * onward[place]
            # as the origin of later ranges, less what has left by then
            gone = before[place + 1] * origin[place + 1]
            fixed[place + 1] = cost + tokens_before[place] - tokens_before[place + 1] + gone
    is_cut = np.zeros(last + 1, bool)
    state = came_from[last]
    while state:
        is_cut[state - 1] = True
        state = came_from[state - 1]
    return is_cut


def _fits(reading: GivenRuns, capacity: PlanCapacity, room: int) -> bool:
    runs = reading.runs.view(RUN)
    parts = int((runs["last"] - runs["first"]).sum())  # no fewer than tasks
    return reading.kv_entries <= capacity.kv_index and parts + room <= min(
        capacity.tasks, capacity.parts
    )


def _reading(forest: PrefixForest, spec: PlanSpec, paths: HeavyPaths, cuts: _Cuts) -> GivenRuns:
    """The ranges as runs, and where the index lists them."""
    tail_place = paths.top[1:] - 1
    tail = paths.node[tail_place]
    position = tail - forest.num_shared
    listed = paths.end[tail_place] - cuts.base
    has_tail = forest.length[tail] > 0
    entries = aligned(listed + has_tail * spec.tail_headroom)
    # a path lies behind the one that it leaves, so behind as many entries as its first token is: no
    # entry of token 0 lies before the index, unless a window has left it behind
    offset = np.cumsum(entries) - entries

    cut = np.flatnonzero(cuts.is_cut)
    node = paths.node[cut]
    left, left_first, left_last = _leaving(forest, paths, cuts)
    runs = [
        # read once for all rows that go on
        (cut, cuts.after[cut], forest.first[node], forest.last[node]),
        # by those that leave together
        (left, paths.end[left], left_first, left_last),
        # and to the end, by the path's own row
        (tail_place, paths.end[tail_place], position, position + 1),
    ]
    place, end, first, last = (np.concatenate(part) for part in zip(*runs, strict=True))
    begin = cuts.begin[place]
    some = end > begin
    place, end, first, last, begin = (a[some] for a in (place, end, first, last, begin))
    path, node = paths.path[place], paths.node[place]

    none = no_tail(spec.shape.seen_tokens)
    append_base = np.full(forest.batch, none, np.int64)
    append_base[forest.order[position]] = np.where(has_tail, offset - cuts.base, none)
    absorbed = np.ones(forest.num_nodes, bool)
    absorbed[paths.node[cut]] = False
    table, spans = np.zeros(len(node), RUN), np.zeros(int((listed > 0).sum()), SPAN)
    for name, values in (
        ("node", node),
        ("start", begin),
        ("length", end - begin),
        ("first", first),
        ("last", last),
        ("offset", offset[path] + begin - cuts.base[path]),
        ("is_tail", (node >= forest.num_shared) & (forest.length[node] > 0)),
    ):
        table[name] = values
    for name, values in (
        ("row", forest.order[position]),
        ("start", cuts.base),
        ("tokens", listed),
        ("entry", offset),
    ):
        spans[name] = values[listed > 0]
    tables = (table.view(np.int64), spans.view(np.int64))
    return GivenRuns(*tables, append_base, int(entries.sum()), absorbed[: forest.num_shared])


def _leaving(
    forest: PrefixForest, paths: HeavyPaths, cuts: _Cuts
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places where rows leave a path and have no copy of it; neighbouring rows read it together.

    Returns:
        ``place``, ``first`` and ``last`` position of each such group of rows.
    """
    path = np.flatnonzero((paths.above >= 0) & ~cuts.is_copied)
    place, top = paths.above[path], paths.node[paths.top[path]]
    along = np.lexsort((forest.first[top], place))
    place, first, last = place[along], forest.first[top][along], forest.last[top][along]
    is_new = np.ones(len(place), bool)
    is_new[1:] = (place[1:] != place[:-1]) | (first[1:] != last[:-1])
    is_last = np.append(is_new[1:], True)[: len(place)]
    return place[is_new], first[is_new], last[is_last]
