"""Random radix paths, and rows that end before, on and behind their leaves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from sglang_codec.planning.paths import RadixPaths

NODE = st.tuples(st.integers(0, 99), st.sampled_from((1, 1, 2, 5, 17)))
ROW = st.tuples(st.integers(0, 99), st.sampled_from((-30, -5, -1, 0, 0, 1, 2, 3, 4, 40)))


def paths_of(
    nodes: Sequence[tuple[int, int]], rows: Sequence[tuple[int, int]]
) -> tuple[RadixPaths, np.ndarray]:
    """Paths and lengths from plain integers, with nodes in any order that has parents first.

    Args:
        nodes: ``(any integer, tokens)``, as of `tree_counts`, but no node is empty.
        rows: ``(any integer, tokens beyond the leaf)``; negative where a row ends before its leaf.
    """
    parent = [choice % (node + 1) - 1 for node, (choice, _) in enumerate(nodes)]
    end: list[int] = []
    for above, (_, tokens) in zip(parent, nodes, strict=True):
        end.append(tokens + (end[above] if above >= 0 else 0))
    leaf = [choice % (len(nodes) + 1) - 1 for choice, _ in rows]
    ends = [end[node] if node >= 0 else 0 for node in leaf]
    lengths = [max(reach + more, 0) for reach, (_, more) in zip(ends, rows, strict=True)]
    arrays = (np.array(values, np.int32) for values in (parent, end, leaf, lengths))
    parents, ends_of_nodes, leaves, row_lengths = arrays
    return RadixPaths(parents, ends_of_nodes, leaves), row_lengths
