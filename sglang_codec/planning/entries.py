"""Where Python enters the compiled planner: what goes in and comes out are arrays and numbers."""

from __future__ import annotations

import numpy as np

from sglang_codec.planning.assembly import assemble
from sglang_codec.planning.compiled import Entry
from sglang_codec.planning.packing import Places, pack, put, put_pieces
from sglang_codec.planning.reading import Reading
from sglang_codec.planning.schedules import schedule_reading
from sglang_codec.planning.structure import Forest, depth_of, forest_of
from sglang_codec.planning.tables import BUNDLE, MACHINE, NODE, PIECE, RUN, SPAN, WAY, ints, view
from sglang_codec.planning.ways import plan_forest

INT32, INT64 = np.dtype(np.int32), np.dtype(np.int64)
# of `report`: why there is no plan and what it would need, then what the caller wants to know
REPORT = 10


def _pack_paths(
    parent: np.ndarray,
    end: np.ndarray,
    leaf: np.ndarray,
    lengths: np.ndarray,
    private_tokens: int,
    machines: np.ndarray,
    places: np.ndarray,
    out: np.ndarray,
    max_lengths: np.ndarray,
    report: np.ndarray,
) -> bool:
    """Radix paths -> what is uploaded; whether a plan fits.

    Args:
        parent, end, leaf, lengths: see `forest_of`. machines: one `MACHINE`.
        places: the numbers of `Places`. out: ``[size]``, written if a plan fits.
        max_lengths: ``[B]``, as of `Plan`, written. report: ``[REPORT]``, behind the first two
            the numbers of `PackedPlan`, but for the rows' tokens.
    """
    machine, report[0], report[1] = machines[0], 0, 0
    forest = forest_of(parent, end, leaf, lengths, private_tokens)
    reading, best = plan_forest(forest, machine, report)
    if not best.found:
        return False
    plan = assemble(forest, reading, best, machine)
    to = Places(places[0], places[1], places[2], places[3], places[4], places[5])
    used = pack(forest, reading, plan, machine.headroom, to, out)
    if used > to.size:
        report[0] = 0
        return False
    longest, tokens = 0, 0
    for s in range(len(reading.spans)):
        longest = max(longest, reading.spans[s].tokens)
    for t in range(len(plan.tasks)):
        tokens += plan.tasks[t].kv_len
    report[2], report[3], report[4], report[5] = used, len(reading.spans), longest, tokens
    report[6], report[7] = forest.num_shared, depth_of(forest)
    for row in range(len(lengths)):
        max_lengths[row] = lengths[row]
        if reading.append_base[row] >= 0:
            max_lengths[row] += machine.headroom
    return True


def _plan_arrays(
    order: np.ndarray,
    lengths: np.ndarray,
    nodes: np.ndarray,
    runs: np.ndarray,
    spans: np.ndarray,
    append_base: np.ndarray,
    kv_entries: int,
    machines: np.ndarray,
    report: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """A forest -> the arrays of a `Plan`, empty if none fits.

    Args:
        order, lengths, nodes: of a `Forest`. runs, spans, append_base, kv_entries: of a `Reading`
            without bundles; where `kv_entries` is below 0, the best one is found.
        report: ``[REPORT]``, behind the first two the numbers of tasks, bundles, pieces, part rows,
            spans and partial rows, and the entries of both indexes.

    Returns:
        int32, array after array as in `Planner`, and float64, the tasks' microseconds.
    """
    machine, report[0], report[1] = machines[0], 0, 0
    forest = Forest(order, lengths, nodes, len(nodes) - len(order))
    if kv_entries < 0:
        reading, best = plan_forest(forest, machine, report)
    else:
        none = ints(0)
        reading = Reading(
            runs,
            view(none, PIECE),
            view(none, BUNDLE),
            spans,
            append_base,
            view(none, WAY),
            kv_entries,
            0,
        )
        best = schedule_reading(forest, reading, machine, machine.num_tiles, report)
    if not best.found:
        report[2] = -1
        return np.zeros(0, np.int32), view(ints(0), np.float64)
    plan = assemble(forest, reading, best, machine)
    tasks, pieces, batch = len(plan.tasks), len(reading.pieces), len(order)
    report[2], report[3], report[4] = tasks, len(reading.bundles), pieces
    report[5], report[6], report[7] = len(plan.part_rows), len(reading.spans), best.parts
    report[8], report[9] = reading.kv_entries, reading.bundle_entries
    size = 11 * tasks + 6 * pieces + len(plan.slot_indptr) + 3 * batch + 1 + len(plan.part_rows)
    out = np.zeros(size + 4 * len(reading.spans) + len(reading.ways), np.int32)
    at = put(out, 0, view(plan.tasks, np.int64))
    at = put_pieces(out, at, forest, reading, machine.headroom)
    at = put(out, at, plan.slot_indptr)
    at = put(out, at, plan.part_indptr)
    at = put(out, at, plan.part_rows)
    at = put(out, at, reading.append_base)
    for row in range(batch):
        out[at + row] = lengths[row] + (machine.headroom if reading.append_base[row] >= 0 else 0)
    at = put(out, at + batch, view(reading.spans, np.int64))
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


def _build_forest(
    parent: np.ndarray, end: np.ndarray, leaf: np.ndarray, lengths: np.ndarray, private_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Radix paths -> `order`, int64 ``[B]``, and the fields of each `NODE`, int64."""
    forest = forest_of(parent, end, leaf, lengths, private_tokens)
    return forest.order, view(forest.nodes, np.int64)


pack_paths = Entry(
    _pack_paths, (*[INT32] * 4, int, MACHINE, INT64, INT32, INT32, INT64)
)
plan_arrays = Entry(
    _plan_arrays, (INT64, INT64, NODE, RUN, SPAN, INT64, int, MACHINE, INT64)
)
build_forest = Entry(_build_forest, (*[INT32] * 4, int))
ENTRIES = (pack_paths, plan_arrays, build_forest)
