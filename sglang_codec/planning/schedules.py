"""One way to read the forest, scheduled: the best of some schedules."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from sglang_codec.planning.compiled import compiled, leaf
from sglang_codec.planning.division import count_chunks, divide, smallest_target
from sglang_codec.planning.fixed_cuts import count_told, cut_as_told
from sglang_codec.planning.gangs import cut_gangs
from sglang_codec.planning.machine import token_us
from sglang_codec.planning.reading import Reading
from sglang_codec.planning.schedule import longest_first
from sglang_codec.planning.structure import Forest
from sglang_codec.planning.tables import ITEM, TASK, ints, tasks_of, view
from sglang_codec.planning.tape import cut_tape
from sglang_codec.planning.tiles import bundle_tasks, query_tiles

# why there is no plan; what was needed stands beside it
FITS, TOO_MANY_PIECES, TOO_LONG_INDEX, TOO_LONG_BUNDLES, TOO_MANY_TASKS, TOO_MANY_PARTS = range(6)

BALANCED = 0.96  # a schedule this balanced is good enough
MANY_TASKS = 512  # beyond, few schedules are tried: time, and they differ little
# the division, as much finer (or coarser) than its own target, where the tape balances badly
FINER = (1.0, 0.9, 2.5, 1.25, 0.75, 1.6)
# and how much coarser when the finer plan does not fit the buffers
COARSER = (0.5, 0.2, 0.05, 0.0)
WORTH = 0.98  # of the time of the best schedule, for another one to take its place
# what writing and reading a partial takes of the time of as many bytes of KV; measured
KEPT_PARTIAL = 0.6  # it stays in the L2
LOST_PARTIAL = 2.4


class Schedule(NamedTuple):
    """What is read, cut into tasks that have their slots.

    Args:
        found: whether it fits; else the rest means nothing.
        items, tasks: tables of `ITEM` and `TASK`.
        parts: partial rows. us: predicted, the longest slot and the merge of partials.
        balance: mean load over the longest.
    """

    found: bool
    items: np.ndarray
    tasks: np.ndarray
    parts: int
    us: float
    balance: float


@compiled
def no_schedule() -> Schedule:
    """What is worse than every schedule."""
    return Schedule(False, view(ints(0), ITEM), view(ints(0), TASK), 0, math.inf, 0.0)


@compiled
def schedule_reading(
    forest: Forest, reading: Reading, machine: np.record, sizes: int, refused: np.ndarray
) -> Schedule:
    """The best of some schedules of tiles of the first `sizes` sizes.

    Args:
        refused: int64 ``[2]``, written where a schedule does not fit: why, and what it needs.
    """
    items = query_tiles(reading, machine, sizes)
    count, slots, bundles = len(items), machine.num_slots, len(reading.bundles)
    own = bundle_tasks(reading, machine, slots)
    busy_us, total, is_ganged = 0.0, 0.0, ints(count)
    for b in range(bundles):
        busy_us += own[b].us
    for i in range(count):
        total += items[i].us
    level = (busy_us + total) / slots
    fixed = bundles + cut_gangs(items, level, machine, is_ganged, own[bundles:])
    busy = longest_first(own[:fixed], slots)
    tasks = tasks_of(count + 2 * slots + bundles)
    done = cut_tape(items, is_ganged, busy, machine, tasks)
    done = _put_tasks(tasks, done, own[:fixed])
    best = _schedule(forest, items, tasks[:done], machine, refused)
    if not count or (best.found and best.balance >= BALANCED):
        return best

    done -= bundles
    target, smallest = smallest_target(items, machine, busy_us)
    for i in range(len(FINER) + len(COARSER)):
        is_coarser = i >= len(FINER)
        if best.found and (is_coarser or (i and done > MANY_TASKS)):
            break
        finer = COARSER[i - len(FINER)] if is_coarser else FINER[i]
        each = max(target / finer, smallest) if finer > 0 else 0.0
        need = count_chunks(items, machine, each) + bundles
        if need > machine.most_tasks:
            refused[0], refused[1] = TOO_MANY_TASKS, need
            continue
        tasks = tasks_of(need)
        done = divide(items, machine, each, tasks)
        _put_tasks(tasks, done, own[:bundles])
        longest_first(tasks, slots)
        other = _schedule(forest, items, tasks, machine, refused)
        if other.found and (not best.found or other.us < WORTH * best.us):
            best = other
        if other.found and other.balance >= BALANCED:
            break
    return best


@compiled
def schedule_as_told(
    forest: Forest, reading: Reading, machine: np.record, refused: np.ndarray
) -> Schedule:
    """The schedule that the `MACHINE` asks for in place of the best one, see `schedule_reading`."""
    items, own = query_tiles(reading, machine, machine.num_tiles), bundle_tasks(reading, machine, 0)
    busy_us, slots = 0.0, machine.num_slots
    for b in range(len(own)):
        busy_us += own[b].us
    tasks = tasks_of(count_told(items, machine, busy_us) + len(own))
    done = cut_as_told(items, machine, busy_us, tasks)
    _put_tasks(tasks, done, own)
    longest_first(tasks[done:] if machine.in_turn else tasks, slots)
    return _schedule(forest, items, tasks, machine, refused)


@compiled
def _schedule(
    forest: Forest,
    items: np.ndarray,
    tasks: np.ndarray,
    machine: np.record,
    refused: np.ndarray,
) -> Schedule:
    """How good a schedule is, and whether it fits."""
    parts, slots = _reserve_parts(tasks, len(forest.order)), machine.num_slots
    found = True
    if len(tasks) > machine.most_tasks:
        refused[0], refused[1], found = TOO_MANY_TASKS, len(tasks), False
    elif parts > machine.most_parts:
        refused[0], refused[1], found = TOO_MANY_PARTS, parts, False
    load, total, longest = view(ints(slots), np.float64), 0.0, 0.0
    for t in range(len(tasks)):
        load[tasks[t].slot] += tasks[t].us
    for s in range(slots):
        total += load[s]
        longest = max(longest, load[s])
    balance = total / slots / longest if longest > 0 else 1.0
    us = longest + _merge_us(forest, machine, parts)
    return Schedule(found, items, tasks, parts, us, balance)


@leaf
def _put_tasks(tasks: np.ndarray, at: int, source: np.ndarray) -> int:
    for t in range(len(source)):
        tasks[at + t] = source[t]
    return at + len(source)


@compiled
def _reserve_parts(tasks: np.ndarray, batch: int) -> int:
    """Partial rows for all but the tasks that are all there is to every one of their rows."""
    at = ints(batch + 1)
    for t in range(len(tasks)):
        at[tasks[t].first] += 1
        at[tasks[t].first + tasks[t].queries] -= 1
    parts, more = 0, 0
    for p in range(batch + 1):  # at[p] becomes the rows before p with several parts
        parts += at[p]
        at[p] = more
        more += parts > 1
    reserved = 0
    for t in range(len(tasks)):
        task = tasks[t]
        task.needs_part = at[task.first + task.queries] > at[task.first]
        reserved += task.needs_part * task.queries
    return reserved


@leaf
def _merge_us(forest: Forest, machine: np.record, parts: int) -> float:
    """Microseconds to write partials and to read them back.

    That is quick in the L2, but what is read between drives them out of it.
    """
    tokens = 0.0
    for n in range(len(forest.nodes)):
        tokens += forest.nodes[n].length
    driven_out = tokens / machine.l2_tokens if tokens < machine.l2_tokens else 1.0
    as_tokens = 2 * parts * machine.partial_bytes / machine.kv_token_bytes
    share = KEPT_PARTIAL + (LOST_PARTIAL - KEPT_PARTIAL) * driven_out
    return share * as_tokens * token_us(machine, 0) / machine.num_slots
