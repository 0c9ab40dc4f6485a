"""Ways to read a forest, and the best of them as they are predicted."""

from __future__ import annotations

import math

import numpy as np

from sglang_codec.planning.absorption import absorb
from sglang_codec.planning.bundles import bundle_tails, single_units
from sglang_codec.planning.compiled import compiled, leaf
from sglang_codec.planning.machine import smallest_tile, token_us, up
from sglang_codec.planning.reading import Reading, given_reading, read_forest
from sglang_codec.planning.schedules import (
    BALANCED,
    TOO_LONG_BUNDLES,
    TOO_LONG_INDEX,
    TOO_MANY_PIECES,
    Schedule,
    no_schedule,
    schedule_as_told,
    schedule_reading,
)
from sglang_codec.planning.structure import Forest
from sglang_codec.planning.tables import RUN, SPAN, WAY, ints, view
from sglang_codec.planning.tiles import tile_share
from sglang_codec.planning.windows import edges_of

# with bundles, then every row on its own from SINGLE on; how eagerly runs are absorbed by what is
# below them. Where all are, each row or bundle reads all of its tokens; where none is and there are
# no bundles, every token is listed once
WAYS = (1.0, 8.0, math.inf, 1.0, math.inf, 0.0)
SINGLE = 3
FEW_TASKS = 256  # up to which smaller tiles are tried where the slots are not balanced
WORTH_SMALLER = 0.95  # smaller tiles read more from the L2: only for so much less time


@compiled
def plan_forest(
    forest: Forest, machine: np.record, refused: np.ndarray
) -> tuple[Reading, Schedule]:
    """The best way to read a forest that fits.

    Args:
        refused: int64 ``[2]``, see `schedule_reading`.
    """
    edges = edges_of(forest, machine)
    single, units = single_units(len(forest.order)), bundle_tails(forest, machine, edges)
    best, last, has_last = no_schedule(), view(ints(0), WAY), False
    tried = last
    best_reading = given_reading(view(ints(0), RUN), view(ints(0), SPAN), ints(0), 0)
    for way in range(0 if units.bundles else SINGLE, len(WAYS)):
        eager = WAYS[way]
        if eager == 0 and best.found:
            break  # only where nothing else fits
        if way == SINGLE:
            units, tried = single, view(ints(0), WAY)
        ways = absorb(forest, units, machine, edges, eager)
        # the reading would be the one before, and come to the same
        if len(tried) and eager > 0 and _are_absorbed_alike(ways, tried):
            continue
        tried = ways
        reading = read_forest(forest, units, ways, machine)
        if not _fits(reading, machine, refused):
            continue
        if best.found and _least_us(reading, machine) >= best.us:
            continue
        is_new = way == SINGLE or eager == 0 or not has_last
        if not is_new and _are_absorbed_alike(ways, last):
            continue
        last, has_last = ways, True
        # smaller tiles are more tasks, where the slots do not have enough of them
        for sizes in range(machine.num_tiles, smallest_tile(machine), -1):
            found = schedule_reading(forest, reading, machine, sizes, refused)
            if not found.found:
                break
            worth = WORTH_SMALLER if sizes < machine.num_tiles else 1.0
            if not best.found or found.us < worth * best.us:
                best, best_reading = found, reading
            is_good = found.balance >= BALANCED or len(found.tasks) > FEW_TASKS
            if is_good or not _has_tile(found.items, sizes - 1):
                break
    if machine.cut and best.found:
        best = schedule_as_told(forest, best_reading, machine, refused)
    return best_reading, best


@leaf
def _fits(reading: Reading, machine: np.record, refused: np.ndarray) -> bool:
    longest, bundles = 0, reading.bundles
    for b in range(len(bundles)):
        longest = max(longest, bundles[b].end - bundles[b].begin)
    if longest > machine.most_pieces:
        refused[0], refused[1] = TOO_MANY_PIECES, longest
    elif reading.kv_entries > machine.most_kv:
        refused[0], refused[1] = TOO_LONG_INDEX, reading.kv_entries
    elif reading.bundle_entries > machine.most_bundle:
        refused[0], refused[1] = TOO_LONG_BUNDLES, reading.bundle_entries
    else:
        return True
    return False


@leaf
def _least_us(reading: Reading, machine: np.record) -> float:
    """What reading its tokens takes at the least, however they are scheduled."""
    largest, tokens = machine.row_tiles[machine.num_tiles - 1] // machine.request_rows, 0.0
    for r in range(len(reading.runs)):
        run = reading.runs[r]
        readers = run.last - run.first
        tokens += up(readers, largest) * tile_share(readers, largest) * run.length
    for i in range(len(reading.pieces)):
        tokens += reading.pieces[i].length
    return tokens * token_us(machine, 0) / machine.num_slots


@leaf
def _are_absorbed_alike(ways: np.ndarray, others: np.ndarray) -> bool:
    for n in range(len(ways)):  # noqa: SIM110 (no generators here)
        if ways[n].absorbed != others[n].absorbed:
            return False
    return True


@leaf
def _has_tile(items: np.ndarray, tile: int) -> bool:
    for i in range(len(items)):  # noqa: SIM110
        if items[i].tile == tile:
            return True
    return False
