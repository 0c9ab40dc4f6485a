"""Which shared runs are too short to be read on their own, and join what is below them."""

from __future__ import annotations

import numpy as np

from sglang_codec.planning.bundles import Units
from sglang_codec.planning.compiled import compiled
from sglang_codec.planning.structure import Forest
from sglang_codec.planning.tables import WAY, ints, view
from sglang_codec.planning.windows import Edges


@compiled
def absorb(
    forest: Forest, units: Units, machine: np.record, edges: Edges, eager: float
) -> np.ndarray:
    """Decide which runs each of their children reads again in front of its own tokens.

    A run of ``l`` tokens with ``s`` readers and ``c`` children, read on its own, saves
    ``(c - 1) l`` tokens of KV traffic and costs ``s`` more partial results, each written once and
    read once. It is absorbed while the saving is at most `eager` times the cost; 0 is for none.
    Tokens that an absorbed ancestor passed down count as the run's own. A run that the window of
    one of its readers may leave is not absorbed above bundles, which know no windows.

    Returns:
        A `WAY` for each node.
    """
    ways = _ways_of(forest, units.units, units.of)
    for n in range(len(ways)):
        node, way = forest.nodes[n], ways[n]
        way.start = node.start
        if node.parent >= 0 and ways[node.parent].absorbed:
            way.start = max(ways[node.parent].start, edges.least[n])
        if n >= forest.num_shared or eager == 0 or way.last <= way.first:
            continue
        if units.bundles and way.start < edges.passed[n]:
            continue
        tokens = float(node.start + node.length - way.start)
        saved = (way.children - 1) * tokens * machine.kv_token_bytes
        way.absorbed = saved <= eager * 2 * machine.partial_bytes * (way.last - way.first)
    return ways


@compiled
def _ways_of(forest: Forest, units: np.ndarray, unit_of: np.ndarray) -> np.ndarray:
    """What is not to be decided of each node's `WAY`, and the units' `above`."""
    nodes, shared = forest.nodes, forest.num_shared
    ways = view(ints(5 * len(nodes)), WAY)
    for n in range(shared):
        node = nodes[n]
        a, b = unit_of[node.first], unit_of[node.last - 1]
        a += units[a].first < node.first
        b -= units[b].last > node.last
        if a > b:
            continue
        ways[n].first, ways[n].last = units[a].first, units[b].last
        if node.parent >= 0:
            ways[node.parent].children += 1
    for u in range(len(units)):
        unit = units[u]
        n = nodes[shared + unit.first].parent
        while n >= 0 and (nodes[n].first > unit.first or nodes[n].last < unit.last):
            n = nodes[n].parent
        unit.above = n
        if n >= 0:
            ways[n].children += 1
    return ways
