"""Which neighbouring rows with short private tails share one task, a bundle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sglang_codec.planning.cost_model import CostModel
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.plan import PlanSpec

_MOST_PER_SLOT = 4
_MOST_TAIL = 1024  # tokens of a tail in a bundle, where a bundle costs no more a token


@dataclass(frozen=True, slots=True)
class Units:
    """The positions of a forest, parted into bundles and single rows.

    Args:
        first, last: int ``[U]``, unit ``u`` holds the positions ``[first[u], last[u])``.
        bundled: bool ``[U]``, the unit is one task with all of its tails; else it is one row.
    """

    first: np.ndarray
    last: np.ndarray
    bundled: np.ndarray

    @classmethod
    def single(cls, batch: int) -> Units:
        """Every row on its own."""
        first = np.arange(batch)
        return cls(first, first + 1, np.zeros(batch, bool))


def bundle_tails(forest: PrefixForest, spec: PlanSpec, cost_model: CostModel) -> Units:
    """Part the rows into units such that the slots have the least to do.

    A task costs its start-up before its first token, and a private tail has few query rows: tails
    of neighbouring positions, each seen by its own row only, can share a query tile. A bundle is
    not cut, so tails whose tokens by far outweigh the start-up stay on their own; nor does it cross
    the edge of a long shared run with many readers, which would have to be read for both sides.
    """
    batch, num_shared = forest.batch, forest.num_shared
    most = spec.bundle_rows // spec.group
    if most < 2 or batch < 2:
        return Units.single(batch)
    start_up, token_us = cost_model.line(spec.bundle_rows)
    worth = start_up / token_us
    tails = forest.length[num_shared:]
    # a tile that a single row fills as badly: the tokens cost the same either way
    fits_badly = spec.row_tiles[0] == spec.bundle_rows
    is_short = (tails > 0) & (tails <= max(worth, _MOST_TAIL if fits_badly else 0))
    count = int(is_short.sum())
    if count < 2:
        return Units.single(batch)

    is_edge = np.zeros(batch + 1, bool)
    is_edge[0] = is_edge[batch] = True
    is_edge[:-1] |= ~is_short
    is_edge[1:] |= ~is_short
    # two runs with so many readers do not fit into a bundle, so one would be read twice
    heavy = (forest.length[:num_shared] > worth) & (2 * forest.readers[:num_shared] > most)
    is_edge[forest.first[:num_shared][heavy]] = True
    is_edge[forest.last[:num_shared][heavy]] = True
    edges = np.flatnonzero(is_edge)
    rows = np.diff(edges)

    # what the slots have to do besides: everything longer, which can be cut at will
    tiles = -(-forest.readers[:num_shared] // most)
    bundle_curve = cost_model.long_curve(spec.bundle_rows)
    row_curve = cost_model.long_curve(spec.row_tiles[0])
    other = float((np.interp(forest.length[:num_shared], *bundle_curve) * tiles).sum())
    alone = np.interp(tails, *row_curve)
    other += float(alone[~is_short].sum())
    best_us, best = (other + float(alone[is_short].sum())) / spec.num_slots, 1
    tokens = int(tails[is_short].sum())
    for size in _sizes(count, most, spec.num_slots):
        number = int((-(-rows // size)).sum())
        # a bundle is not cut: rather smaller ones than idle slots
        if number < spec.num_slots and size > 2 and count >= 2 * spec.num_slots:
            continue
        each = float(np.interp(tokens / number, *bundle_curve))
        us = max((other + number * each) / spec.num_slots, -(-number // spec.num_slots) * each)
        if us < best_us:
            best_us, best = us, size
    if best == 1:
        return Units.single(batch)

    parts = -(-rows // best)
    segment = np.repeat(np.arange(len(rows)), parts)
    nth = np.arange(len(segment)) - np.repeat(np.cumsum(parts) - parts, parts)
    first = edges[segment] + nth * rows[segment] // parts[segment]
    last = np.append(first[1:], batch)
    return Units(first, last, last - first > 1)


def _sizes(count: int, most: int, num_slots: int) -> list[int]:
    """Rows of a bundle worth trying: as many as fit, or so many that each slot has equally many."""
    even = (-(-count // (n * num_slots)) for n in range(1, _MOST_PER_SLOT + 1))
    return sorted({most, *(size for size in even if 1 < size < most)}, reverse=True)
