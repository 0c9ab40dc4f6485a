"""What is read for whom: the runs that are read on their own, and the pieces of each bundle."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sglang_codec.planning.bundles import Units
from sglang_codec.planning.compiled import compiled, leaf
from sglang_codec.planning.machine import aligned
from sglang_codec.planning.structure import Forest
from sglang_codec.planning.tables import BUNDLE, PIECE, RUN, SPAN, WAY, ints, view
from sglang_codec.planning.windows import no_tail


class Reading(NamedTuple):
    """Everything that a plan reads, and how the KV index is filled.

    Args:
        runs, pieces, bundles, spans: tables of `RUN`, `PIECE` (bundle after bundle, by first
            token), `BUNDLE` and `SPAN`.
        append_base: int64 ``[B]`` by row, see `Plan.append_base`.
        ways: a table of `WAY`, one for each shared run.
        kv_entries, bundle_entries: of the KV index and of the bundles' index.
    """

    runs: np.ndarray
    pieces: np.ndarray
    bundles: np.ndarray
    spans: np.ndarray
    append_base: np.ndarray
    ways: np.ndarray
    kv_entries: int
    bundle_entries: int


@compiled
def read_forest(forest: Forest, units: Units, ways: np.ndarray, machine: np.record) -> Reading:
    """Decide for every node of the forest how its tokens reach its readers.

    A run whose readers are whole units is read once for them, or absorbed by what is below it. A
    run that begins or ends inside a bundle is a piece of that bundle.

    Args:
        ways: of the forest's nodes, see `absorb`.
    """
    shared, nodes, order, parts = forest.num_shared, forest.nodes, forest.order, units.units
    batch, unit_of = len(order), units.of
    runs = view(ints(7 * (shared + batch)), RUN)
    pieces = view(ints(8 * (2 * shared + units.bundles + batch)), PIECE)
    spans = view(ints(4 * (3 * shared + batch)), SPAN)
    num_runs, num_pieces, num_spans, entry = 0, 0, 0, 0
    # runs that are read on their own, and pieces of the bundles at both ends of a run
    for n in range(shared):
        node, way = nodes[n], ways[n]
        row, end = order[node.first], node.start + node.length  # any reader of a run has its slots
        if way.last > way.first and not way.absorbed and end > way.start:
            _put_run(runs[num_runs], n, way.start, end, way.first, way.last, entry)
            num_runs += 1
            entry = _put_span(spans[num_spans], row, way.start, end, entry, 0)
            num_spans += 1
        a, b = unit_of[node.first], unit_of[node.last - 1]
        cuts_a, cuts_b = parts[a].first < node.first, parts[b].last > node.last
        if not (cuts_a or cuts_b):
            continue
        if cuts_a:
            _put_piece(pieces[num_pieces], forest, parts, a, n, node.start, entry)
            num_pieces += 1
        if cuts_b and not (cuts_a and a == b):
            _put_piece(pieces[num_pieces], forest, parts, b, n, node.start, entry)
            num_pieces += 1
        entry = _put_span(spans[num_spans], row, node.start, end, entry, 0)
        num_spans += 1
    # absorbed runs above bundles, listed once for all bundles below them
    listed_at = ints(shared)  # one more, 0 before
    for u in range(len(parts) if units.bundles else 0):
        n = parts[u].above
        if parts[u].last - parts[u].first < 2 or n < 0 or not ways[n].absorbed:
            continue
        if not listed_at[n]:
            listed_at[n] = entry + 1
            node, start = nodes[n], ways[n].start
            end = node.start + node.length
            entry = _put_span(spans[num_spans], order[node.first], start, end, entry, 0)
            num_spans += 1
        _put_piece(pieces[num_pieces], forest, parts, u, n, ways[n].start, listed_at[n] - 1)
        num_pieces += 1
    append_base = ints(batch)
    for p in range(batch):
        n, u, row, node = shared + p, unit_of[p], order[p], nodes[shared + p]
        is_bundled = parts[u].last - parts[u].first > 1
        # a bundle reads absorbed ancestors as a piece, a single row in front of its tail
        start, end = node.start if is_bundled else ways[n].start, node.start + node.length
        append_base[row] = no_tail(machine.window)
        if end <= start:
            continue
        append_base[row] = entry - start
        if is_bundled:
            _put_piece(pieces[num_pieces], forest, parts, u, n, start, entry)
            num_pieces += 1
        else:
            _put_run(runs[num_runs], n, start, end, p, p + 1, entry)
            runs[num_runs].is_tail = 1
            num_runs += 1
        entry = _put_span(spans[num_spans], row, start, end, entry, machine.headroom)
        num_spans += 1
    pieces, bundles = _by_bundle(units, pieces[:num_pieces])
    bundle_entries = 0
    for b in range(len(bundles)):
        entries = 0
        for i in range(bundles[b].begin, bundles[b].end):
            entries += pieces[i].length + pieces[i].is_tail * machine.headroom
        bundle_entries += aligned(entries)
    return Reading(
        runs[:num_runs],
        pieces,
        bundles,
        spans[:num_spans],
        append_base,
        ways[:shared],
        entry,
        bundle_entries,
    )


@compiled
def given_reading(
    runs: np.ndarray, spans: np.ndarray, append_base: np.ndarray, kv_entries: int
) -> Reading:
    """A reading without bundles, made elsewhere."""
    no = ints(0)
    bundle_entries = len(no)  # a literal 0 would be another type of reading
    return Reading(
        runs,
        view(no, PIECE),
        view(no, BUNDLE),
        spans,
        append_base,
        view(no, WAY),
        kv_entries,
        bundle_entries,
    )


@leaf
def _put_run(
    run: np.record, node: int, start: int, end: int, first: int, last: int, offset: int
) -> None:
    run.node = node
    run.start = start
    run.length = end - start
    run.first = first
    run.last = last
    run.offset = offset


@leaf
def _put_piece(
    piece: np.record,
    forest: Forest,
    units: np.ndarray,
    unit: int,
    n: int,
    start: int,
    offset: int,
) -> None:
    node, of = forest.nodes[n], units[unit]
    piece.unit = unit
    piece.node = n
    piece.start = start
    piece.length = node.start + node.length - start
    piece.offset = offset
    piece.low = max(node.first - of.first, 0)
    piece.high = min(node.last, of.last) - of.first
    piece.is_tail = n >= forest.num_shared


@leaf
def _put_span(span: np.record, row: int, start: int, end: int, entry: int, room: int) -> int:
    """Lists tokens from `entry` on; returns where the next ones go."""
    span.row = row
    span.start = start
    span.tokens = end - start
    span.entry = entry
    return entry + aligned(end - start + room)


@compiled
def _by_bundle(units: Units, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pieces in order, and the bundles."""
    bundles, done = view(ints(4 * units.bundles), BUNDLE), view(ints(8 * len(pieces)), PIECE)
    if not units.bundles:
        return done, bundles
    bundle_of, count = ints(len(units.units)), 0
    for u in range(len(units.units)):
        unit = units.units[u]
        if unit.last - unit.first > 1:
            bundles[count].first, bundles[count].last = unit.first, unit.last
            bundle_of[u] = count
            count += 1
    for i in range(len(pieces)):
        bundles[bundle_of[pieces[i].unit]].end += 1
    begin = 0
    for b in range(count):
        begin += bundles[b].end
        bundles[b].begin = bundles[b].end = begin - bundles[b].end
    for i in range(len(pieces)):
        bundle = bundles[bundle_of[pieces[i].unit]]
        at = bundle.end
        bundle.end += 1
        # a row's pieces are then in token order
        while at > bundle.begin and done[at - 1].start > pieces[i].start:
            done[at] = done[at - 1]
            at -= 1
        done[at] = pieces[i]
    return done, bundles
