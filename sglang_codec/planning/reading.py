"""What is read for whom: the runs that are read on their own, and the pieces of each bundle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sglang_codec.planning.absorption import absorb_short_runs, absorbed_starts
from sglang_codec.planning.bundles import Units
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.plan import PlanSpec, aligned


@dataclass(frozen=True, slots=True)
class Runs:
    """Nodes that are read on their own, with the tokens of absorbed ancestors in front."""

    node: np.ndarray  # [K] forest node
    start: np.ndarray  # [K] first token
    length: np.ndarray  # [K] tokens
    first: np.ndarray  # [K] readers: positions [first, last)
    last: np.ndarray  # [K]
    offset: np.ndarray  # [K] first entry in the KV index
    is_tail: np.ndarray  # [K]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Runs of tokens that some queries of a bundle see, sorted by bundle."""

    bundle: np.ndarray  # [P]
    node: np.ndarray  # [P] forest node in which the piece ends
    start: np.ndarray  # [P] first token
    length: np.ndarray  # [P] tokens
    offset: np.ndarray  # [P] first entry in the KV index
    low: np.ndarray  # [P] queries of the bundle [low, high)
    high: np.ndarray  # [P]
    is_tail: np.ndarray  # [P]


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything that a plan reads, and how the KV index is filled."""

    runs: Runs
    pieces: Pieces
    bundle_first: np.ndarray  # [N] first position
    bundle_last: np.ndarray  # [N]
    spans: np.ndarray  # int64 [S, 4], see `Plan.spans`
    tail_base: np.ndarray  # [B] by position: entry of token 0 of the tail's row, -1 without a tail
    kv_entries: int
    absorbed: np.ndarray  # bool [num_shared]


def read_plan(forest: PrefixForest, units: Units, spec: PlanSpec, *, absorb: bool) -> Reading:
    """Decide for every node of the forest how its tokens reach its readers.

    A run whose readers are whole units is read once for them, or absorbed by what is below it. A
    run that begins or ends inside a bundle is a piece of that bundle.
    """
    num_shared = forest.num_shared
    shared_first, shared_last = forest.first[:num_shared], forest.last[:num_shared]
    bundle = np.flatnonzero(units.bundled)
    bundle_first, bundle_last = units.first[bundle], units.last[bundle]
    if len(bundle):
        of_position = np.repeat(np.arange(len(units.first)), units.last - units.first)
        unit0, unit1 = of_position[shared_first], of_position[shared_last - 1]
        cuts_first = units.first[unit0] < shared_first
        cuts_last = units.last[unit1] > shared_last
        inner0, inner1 = unit0 + cuts_first, unit1 - cuts_last
        is_whole = inner0 <= inner1
        inner0, inner1 = np.minimum(inner0, len(units.first) - 1), np.maximum(inner1, 0)
        reads_first, reads_last = units.first[inner0], units.last[inner1]
        # the bundles at both ends of a run, each once
        left = np.flatnonzero(cuts_first)
        right = np.flatnonzero(cuts_last & ~(cuts_first & (unit0 == unit1)))
        part_node = np.concatenate([left, right])
        part_unit = np.concatenate([unit0[left], unit1[right]])
    else:
        is_whole = np.ones(num_shared, bool)
        reads_first, reads_last = shared_first, shared_last
        part_node = part_unit = np.zeros(0, np.int64)

    # the deepest run that each unit is whole in
    above = forest.parent[num_shared + units.first]
    todo = bundle
    while len(todo):
        node = above[todo]
        inside = node >= 0
        inside &= (forest.first[node] > units.first[todo]) | (forest.last[node] < units.last[todo])
        todo = todo[inside]
        above[todo] = forest.parent[above[todo]]

    parent = forest.parent[:num_shared]
    absorbed = np.zeros(num_shared, bool)
    if absorb and num_shared:
        has_parent = is_whole & (parent >= 0)
        children = np.bincount(parent[has_parent], minlength=num_shared)
        children += np.bincount(above[above >= 0], minlength=num_shared)
        absorbed = absorb_short_runs(
            forest,
            readers=reads_last - reads_first,
            children=children,
            kv_token_bytes=spec.shape.kv_token_bytes,
            partial_bytes=spec.shape.partial_bytes,
        )
        absorbed &= is_whole
    start = absorbed_starts(forest, absorbed)
    end = forest.start + forest.length

    # four kinds of spans in the KV index: runs, pieces, absorbed runs above bundles, tails
    run = np.flatnonzero(is_whole & ~absorbed)
    run = run[end[run] > start[run]]
    piece, piece_of = np.unique(part_node, return_inverse=True)
    chain_unit = bundle[(above[bundle] >= 0) & np.append(absorbed, False)[above[bundle]]]
    chain, chain_of = np.unique(above[chain_unit], return_inverse=True)
    is_single = np.repeat(~units.bundled, units.last - units.first)
    tail = num_shared + np.arange(forest.batch)
    # a bundle reads absorbed ancestors as a piece of their own, a single row in front of its tail
    tail_start = np.where(is_single, start[num_shared:], forest.start[num_shared:])
    has_tail = end[tail] > tail_start
    tail, tail_start, is_single = tail[has_tail], tail_start[has_tail], is_single[has_tail]
    position = tail - num_shared

    span_node = np.concatenate([run, piece, chain, tail])
    span_start = np.concatenate([start[run], forest.start[piece], start[chain], tail_start])
    span_length = end[span_node] - span_start
    room = np.zeros(len(span_node), np.int64)
    room[len(span_node) - len(tail) :] = spec.tail_headroom
    span_entries = aligned(span_length + room)
    span_end = np.cumsum(span_entries)
    offset = span_end - span_entries
    at_run, at_piece, at_chain, at_tail = np.split(
        offset, np.cumsum([len(run), len(piece), len(chain)])
    )
    # any reader of a run has its slots
    span_row = forest.order[forest.first[span_node]]

    runs = Runs(
        node=np.concatenate([run, tail[is_single]]),
        start=np.concatenate([start[run], tail_start[is_single]]),
        length=np.concatenate([end[run] - start[run], (end[tail] - tail_start)[is_single]]),
        first=np.concatenate([reads_first[run], position[is_single]]),
        last=np.concatenate([reads_last[run], position[is_single] + 1]),
        offset=np.concatenate([at_run, at_tail[is_single]]),
        is_tail=np.arange(len(run) + int(is_single.sum())) >= len(run),
    )
    bundled_tail = tail[~is_single]
    of_tail = of_position[bundled_tail - num_shared] if len(bundle) else bundled_tail
    tail_base = np.full(forest.batch, -1, np.int64)
    tail_base[position] = at_tail - tail_start
    return Reading(
        runs=runs,
        pieces=_sorted_pieces(
            forest,
            units,
            unit=np.concatenate([part_unit, chain_unit, of_tail]),
            node=np.concatenate([part_node, above[chain_unit], bundled_tail]),
            start=np.concatenate(
                [forest.start[part_node], start[above[chain_unit]], forest.start[bundled_tail]]
            ),
            offset=np.concatenate([at_piece[piece_of], at_chain[chain_of], at_tail[~is_single]]),
        ),
        bundle_first=bundle_first,
        bundle_last=bundle_last,
        spans=np.stack([span_row, span_start, span_length, offset], axis=1),
        tail_base=tail_base,
        kv_entries=int(span_end[-1]) if len(span_end) else 0,
        absorbed=absorbed,
    )


def _sorted_pieces(
    forest: PrefixForest,
    units: Units,
    *,
    unit: np.ndarray,
    node: np.ndarray,
    start: np.ndarray,
    offset: np.ndarray,
) -> Pieces:
    by_unit = np.lexsort((start, unit))  # a row's pieces are then in token order
    unit, node, start = unit[by_unit], node[by_unit], start[by_unit]
    first = units.first[unit]
    return Pieces(
        bundle=np.cumsum(units.bundled)[unit] - 1,
        node=node,
        start=start,
        length=forest.start[node] + forest.length[node] - start,
        offset=offset[by_unit],
        low=np.maximum(forest.first[node] - first, 0),
        high=np.minimum(forest.last[node], units.last[unit]) - first,
        is_tail=node >= forest.num_shared,
    )
