"""Where Python enters the compiled planner: what goes in and comes out are arrays and numbers."""

from __future__ import annotations

import numpy as np

from sglang_codec.planning.assembly import Assembled, assemble
from sglang_codec.planning.compiled import Entry, compiled
from sglang_codec.planning.packing import Places, pack, put, put_pieces
from sglang_codec.planning.reading import Reading, given_reading
from sglang_codec.planning.schedules import Schedule, schedule_reading
from sglang_codec.planning.structure import Forest, are_paths, depth_of, first_seen, forest_of
from sglang_codec.planning.tables import MACHINE, NODE, RUN, SPAN, ints, view
from sglang_codec.planning.ways import plan_forest
from sglang_codec.planning.windows import no_tail

INT32, INT64 = np.dtype(np.int32), np.dtype(np.int64)
# what a plan is reported to be: numbers in this order
REPORT = (
    "why",  # there is none, and what it would need
    "need",
    "used",  # from here on as in `PackedPlan`
    "num_spans",
    "longest_span",
    "kv_tokens_read",
    "kv_tokens_stock",
    "room",
    "num_shared",
    "depth",
    "num_tasks",
    "num_bundles",
    "num_pieces",
    "num_listed",  # entries of the part lists
    "num_parts",
    "kv_entries",
    "bundle_entries",
)
REFUSED = -1  # why there is no plan: the arrays are not what they have to be
MOST_ROOM = 2**31 - 1  # of a plan without rows


def _build_forest(
    parent: np.ndarray,
    end: np.ndarray,
    leaf: np.ndarray,
    lengths: np.ndarray,
    private_tokens: int,
    window: int,
) -> tuple[bool, np.ndarray, np.ndarray]:
    """Radix paths -> if they are any, `order`, int64 ``[B]``, and each `NODE`'s fields, int64."""
    if not are_paths(parent, end, leaf, lengths):
        return False, ints(0), ints(0)
    forest = forest_of(parent, end, leaf, lengths, private_tokens, window)
    return True, forest.order, view(forest.nodes, np.int64)


def _plan(
    parent: np.ndarray,
    end: np.ndarray,
    leaf: np.ndarray,
    lengths: np.ndarray,
    order: np.ndarray,
    nodes: np.ndarray,
    runs: np.ndarray,
    spans: np.ndarray,
    append_base: np.ndarray,
    kv_entries: int,
    machines: np.ndarray,
    places: np.ndarray,
    out: np.ndarray,
    max_lengths: np.ndarray,
    report: np.ndarray,
) -> tuple[bool, np.ndarray, np.ndarray]:
    """Radix paths or a forest -> a packed plan, or the arrays of a `Plan`.

    Args:
        parent, end, leaf: of `RadixPaths`. lengths: int32 ``[B]``.
        order, nodes: of a `Forest`, `nodes` as int64, in place of paths; none for paths.
        runs, spans, append_base, kv_entries: of a `Reading` without bundles, as int64; where
            `kv_entries` is below 0, the best reading is found.
        machines: one `MACHINE`.
        places: the numbers of `Places`, or none for no packed plan.
        out: int32 ``[size]``, the packed plan. max_lengths: int32 ``[B]``, as of `Plan`.
        report: int64, see `REPORT`.

    Returns:
        Whether a plan fits; nothing is written if not. Without `places` also int32, array after
        array as in `Planner`, and float64, the tasks' microseconds.
    """
    machine, nothing, no_us = machines[0], np.zeros(0, np.int32), view(ints(0), np.float64)
    report[0], report[1] = 0, 0
    if len(order):
        table = view(nodes, NODE)
        forest = Forest(order, table, len(table) - len(order))
    elif are_paths(parent, end, leaf, lengths) and (not len(places) or len(out) >= places[5]):
        forest = forest_of(parent, end, leaf, lengths, machine.query_rows, machine.window)
    else:
        report[0] = REFUSED
        return False, nothing, no_us
    if kv_entries < 0:
        reading, best = plan_forest(forest, machine, report)
    else:
        reading = given_reading(view(runs, RUN), view(spans, SPAN), append_base, kv_entries)
        best = schedule_reading(forest, reading, machine, machine.num_tiles, report)
    if not best.found:
        return False, nothing, no_us
    plan = assemble(forest, reading, best, machine)
    if len(places):
        to = Places(places[0], places[1], places[2], places[3], places[4], places[5])
        report[2] = pack(forest, reading, plan, machine, to, out)
        if report[2] > to.size:
            report[0] = 0
            return False, nothing, no_us
    _report(forest, reading, best, plan, report)
    tokens, least = 0, MOST_ROOM
    for row in range(len(lengths)):
        has_tail = reading.append_base[row] > no_tail(machine.window)
        room = machine.headroom if has_tail else 0
        max_lengths[row] = lengths[row] + room
        tokens += lengths[row] - first_seen(lengths[row], machine.window)
        least = min(least, room)
    report[6], report[7] = tokens, least
    if len(places):
        return True, nothing, no_us
    return True, *_arrays(forest, reading, plan, machine)


@compiled
def _report(
    forest: Forest, reading: Reading, best: Schedule, plan: Assembled, report: np.ndarray
) -> None:
    longest, tokens = 0, 0
    for s in range(len(reading.spans)):
        longest = max(longest, reading.spans[s].tokens)
    for t in range(len(plan.tasks)):
        tokens += plan.tasks[t].kv_len
    report[3], report[4], report[5] = len(reading.spans), longest, tokens
    report[8], report[9] = forest.num_shared, depth_of(forest)
    report[10], report[11] = len(plan.tasks), len(reading.bundles)
    report[12], report[13] = len(reading.pieces), len(plan.part_rows)
    report[14], report[15], report[16] = best.parts, reading.kv_entries, reading.bundle_entries


@compiled
def _arrays(
    forest: Forest, reading: Reading, plan: Assembled, machine: np.record
) -> tuple[np.ndarray, np.ndarray]:
    tasks, pieces, batch = len(plan.tasks), len(reading.pieces), len(forest.order)
    size = 11 * tasks + 6 * pieces + len(plan.slot_indptr) + 2 * batch + 1 + len(plan.part_rows)
    out = np.zeros(size + 4 * len(reading.spans) + len(reading.ways), np.int32)
    at = put(out, 0, view(plan.tasks, np.int64))
    at = put_pieces(out, at, forest, reading, machine)
    at = put(out, at, plan.slot_indptr)
    at = put(out, at, plan.part_indptr)
    at = put(out, at, plan.part_rows)
    at = put(out, at, reading.append_base)
    at = put(out, at, view(reading.spans, np.int64))
    us = view(ints(tasks), np.float64)
    for t in range(tasks):
        note = plan.notes[t]
        out[at + t] = note.node
        out[at + tasks + t] = note.start
        out[at + 2 * tasks + t] = note.slot
        us[t] = note.us
    at += 3 * tasks
    for p in range(pieces):
        out[at + p] = reading.pieces[p].node
        out[at + pieces + p] = reading.pieces[p].start
    at += 2 * pieces
    for n in range(len(reading.ways)):
        out[at + n] = reading.ways[n].absorbed
    return out, us


build_forest = Entry(_build_forest, (*[INT32] * 4, int, int))
plan = Entry(_plan, (*[INT32] * 4, *[INT64] * 5, int, MACHINE, INT64, INT32, INT32, INT64))
ENTRIES = (build_forest, plan)
