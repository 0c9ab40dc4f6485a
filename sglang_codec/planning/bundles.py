"""Which neighbouring rows with short private tails share one task, a bundle."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sglang_codec.planning.compiled import compiled, leaf
from sglang_codec.planning.machine import smallest_tile, task_us, token_us, up
from sglang_codec.planning.structure import Forest
from sglang_codec.planning.tables import MOST_POINTS, UNIT, ints, view
from sglang_codec.planning.windows import Edges

MOST_PER_SLOT = 4
MOST_TAIL = 1024.0  # tokens of a tail in a bundle, where a bundle costs no more a token


class Units(NamedTuple):
    """The positions of a forest, parted into bundles and single rows.

    Args:
        units: a table of `UNIT`. bundles: how many of them have several rows.
        of: int64 ``[B]``, the unit of each position.
    """

    units: np.ndarray
    bundles: int
    of: np.ndarray


@compiled
def single_units(batch: int) -> Units:
    """Every row on its own."""
    units = view(ints(3 * batch), UNIT)
    for p in range(batch):
        units[p].first = p
        units[p].last = p + 1
    return _with_places(units, 0, batch)


@compiled
def _with_places(units: np.ndarray, bundles: int, batch: int) -> Units:
    of = ints(batch)
    for u in range(len(units)):
        for p in range(units[u].first, units[u].last):
            of[p] = u
    return Units(units, bundles, of)


@compiled
def bundle_tails(forest: Forest, machine: np.record, edges: Edges) -> Units:
    """Part the rows into units such that the slots have the least to do.

    A task costs its start-up before its first token, and a private tail has few query rows: tails
    of neighbouring positions, each seen by its own row only, can share a query tile. A bundle is
    not cut, so tails whose tokens by far outweigh the start-up stay on their own; nor does it cross
    the edge of a long shared run with many readers, which would have to be read for both sides, or
    of one that the window of a reader may leave.
    """
    batch, shared, nodes = len(forest.order), forest.num_shared, forest.nodes
    fitting = machine.bundle_rows // machine.request_rows
    if fitting < 2 or batch < 2:
        return single_units(batch)
    kind, single = machine.num_tiles, smallest_tile(machine)
    worth = machine.us[kind * MOST_POINTS] / token_us(machine, kind)
    most_tokens = worth
    # a tile that a single row fills as badly: the tokens cost the same either way
    if machine.row_tiles[0] == machine.bundle_rows:
        most_tokens = max(worth, MOST_TAIL)

    is_edge, is_short = ints(batch + 1), ints(batch)
    other, alone, tokens, count = 0.0, 0.0, 0, 0
    for p in range(batch):
        tail = nodes[shared + p].length
        us = task_us(machine, single, tail)
        if 0 < tail <= most_tokens:
            is_short[p] = 1
            count += 1
            alone += us
            tokens += tail
        else:
            is_edge[p] = is_edge[p + 1] = 1
            other += us
    if count < 2:
        return single_units(batch)
    is_edge[0] = is_edge[batch] = 1
    for n in range(shared):
        node = nodes[n]
        readers = node.last - node.first
        other += up(readers, fitting) * task_us(machine, kind, node.length)
        # two such runs do not fit into a bundle, so it would be read twice
        is_long = node.length > worth and 2 * readers > fitting
        if is_long or node.start < edges.passed[n]:
            is_edge[node.first] = is_edge[node.last] = 1
    rows, segments = ints(batch), 0  # short tails of each segment between edges
    for p in range(batch):
        if is_short[p]:
            segments += is_edge[p]
            rows[segments - 1] += 1
    size = _best_size(machine, fitting, count, tokens, other, alone, rows[:segments])
    return single_units(batch) if size == 1 else _parted(is_short, rows, size)


@leaf
def _best_size(
    machine: np.record,
    fitting: int,
    count: int,
    tokens: int,
    other: float,
    alone: float,
    rows: np.ndarray,
) -> int:
    """The rows of a bundle that leave the slots the least to do; 1 for no bundles.

    Args:
        count, tokens: of the short tails. alone: their microseconds without bundles.
        other: microseconds of everything else.
        rows: int64 ``[S]``, short tails of each segment.
    """
    slots, kind = machine.num_slots, machine.num_tiles
    best_us, best = (other + alone) / slots, 1
    for n in range(MOST_PER_SLOT + 1):
        size = up(count, n * slots) if n else fitting
        if size < 2 or size > fitting or (n and size == fitting):
            continue
        number = 0
        for s in range(len(rows)):
            number += up(rows[s], size)
        # a bundle is not cut: rather smaller ones than idle slots
        if number < slots and size > 2 and count >= 2 * slots:
            continue
        each = task_us(machine, kind, tokens / number)
        us = max((other + number * each) / slots, up(number, slots) * each)
        if us < best_us:
            best_us, best = us, size
    return best


@compiled
def _parted(is_short: np.ndarray, rows: np.ndarray, size: int) -> Units:
    """Segments of short tails in equal units of at most `size` rows, other rows on their own."""
    batch = len(is_short)
    units = view(ints(3 * batch), UNIT)
    count, bundles, segment, p = 0, 0, 0, 0
    while p < batch:
        parts, length = 1, 1
        if is_short[p]:
            length = rows[segment]
            segment += 1
            parts = up(length, size)
        for i in range(parts):
            unit = units[count]
            unit.first = p + i * length // parts
            unit.last = p + (i + 1) * length // parts
            bundles += unit.last - unit.first > 1
            count += 1
        p += length
    return _with_places(units[:count], bundles, batch)
