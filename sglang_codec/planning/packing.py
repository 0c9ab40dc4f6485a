"""A plan as it is uploaded; see `PlanLayout`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sglang_codec.planning.assembly import Assembled
from sglang_codec.planning.compiled import compiled, leaf
from sglang_codec.planning.reading import Reading
from sglang_codec.planning.structure import Forest
from sglang_codec.planning.tables import ints, view
from sglang_codec.planning.windows import no_tail

SLOT_INTS, TASK_INTS, PIECE_INTS, SPAN_INTS, MERGE_INTS = 8, 8, 4, 4, 4  # as in plan.py


class Places(NamedTuple):
    """Where the sections of a packed plan begin, see `PlanLayout`; rows: of the capacity."""

    rows: int
    order: int
    merges: int
    append_base: int
    tasks: int
    size: int


@compiled
def pack(
    forest: Forest,
    reading: Reading,
    plan: Assembled,
    machine: np.record,
    places: Places,
    out: np.ndarray,
) -> int:
    """Writes a plan; returns how many elements are used, or would be: nothing is written then."""
    batch, count = len(forest.order), len(plan.tasks)
    pieces = places.tasks + TASK_INTS * count
    parts = pieces + PIECE_INTS * len(reading.pieces)
    spans = parts + len(plan.part_rows)
    used = spans + SPAN_INTS * len(reading.spans)
    if used > places.size:
        return used
    slots = (places.order) // SLOT_INTS
    for c in range(len(plan.slot_indptr) // (slots + 1)):
        for s in range(slots):
            out[SLOT_INTS * s + 2 * c] = plan.slot_indptr[c * (slots + 1) + s]
            out[SLOT_INTS * s + 2 * c + 1] = plan.slot_indptr[c * (slots + 1) + s + 1]
    put(out, places.order, forest.order)
    _list_merges(plan, batch, parts, out[places.merges : places.append_base])
    put(out, places.append_base, reading.append_base)
    for row in range(batch, places.rows):
        out[places.append_base + row] = no_tail(machine.window)
    put(out, places.tasks, view(plan.tasks, np.int64))
    # a bundle names its first piece by where that lies in the packed plan
    for t in range(count - len(reading.bundles), count):
        out[places.tasks + TASK_INTS * t + 6] = pieces + PIECE_INTS * plan.tasks[t].open_base
    put_pieces(out, pieces, forest, reading, machine)
    put(out, parts, plan.part_rows)
    put(out, spans, view(reading.spans, np.int64))
    return used


@leaf
def put(out: np.ndarray, at: int, values: np.ndarray) -> int:
    """Writes `values`, int64, from `at` on; returns where they end."""
    for i in range(len(values)):
        out[at + i] = values[i]
    return at + len(values)


@leaf
def put_pieces(
    out: np.ndarray, at: int, forest: Forest, reading: Reading, machine: np.record
) -> int:
    """Writes `Plan.pieces` from `at` on; returns where they end."""
    for p in range(len(reading.pieces)):
        piece = reading.pieces[p]
        out[at] = piece.offset
        out[at + 1] = piece.length
        out[at + 2] = -1
        if piece.is_tail and (machine.headroom > 0 or machine.query_rows > 1):
            out[at + 1] = piece.length + machine.headroom
            out[at + 2] = forest.order[piece.node - forest.num_shared]
        out[at + 3] = piece.low + (piece.high << 16)
        at += PIECE_INTS
    return at


@compiled
def _list_merges(plan: Assembled, batch: int, parts_at: int, merges: np.ndarray) -> None:
    """Rows that no task writes directly, most parts first, then in order."""
    indptr, largest = plan.part_indptr, 0
    for row in range(batch):
        largest = max(largest, indptr[row + 1] - indptr[row])
    # begin[largest - parts]: where rows of so many parts go
    begin, key, listed = ints(largest + 2), ints(batch), 0
    for row in range(batch):
        parts = indptr[row + 1] - indptr[row]
        is_direct = parts == 1 and plan.part_rows[indptr[row]] < 0
        key[row] = -1 if is_direct else largest - parts
        if not is_direct:
            begin[key[row] + 1] += 1
            listed += 1
    for k in range(largest + 1):
        begin[k + 1] += begin[k]
    for row in range(batch):
        if key[row] >= 0:
            begin[key[row]] += 1
            at = MERGE_INTS * begin[key[row]]
            merges[at] = row
            merges[at + 1] = parts_at + indptr[row]
            merges[at + 2] = parts_at + indptr[row + 1]
            merges[at + 3] = 0
    merges[0], merges[1], merges[2], merges[3] = listed, batch, 0, 0
