"""Radix paths and lengths -> runs of KV tokens and who reads them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sglang_codec.planning.compiled import compiled, leaf
from sglang_codec.planning.tables import ints, nodes_of


class Forest(NamedTuple):
    """A `PrefixForest`: `order`, int64 ``[B]``, and `nodes`, a table of `NODE`."""

    order: np.ndarray
    nodes: np.ndarray
    num_shared: int


@leaf
def are_paths(
    above_of: np.ndarray, end: np.ndarray, leaf_of: np.ndarray, tokens: np.ndarray
) -> bool:
    """Whether these are a tree and rows below it, so that `forest_of` stays within the arrays."""
    if len(above_of) != len(end) or len(leaf_of) != len(tokens):
        return False
    for n in range(len(end)):
        above = above_of[n]
        if above < -1 or above >= n or end[n] <= (0 if above < 0 else end[above]):
            return False
    for row in range(len(leaf_of)):
        if leaf_of[row] < -1 or leaf_of[row] >= len(end) or tokens[row] < 0:
            return False
    return True


@compiled
def forest_of(
    above_of: np.ndarray,
    end: np.ndarray,
    leaf_of: np.ndarray,
    tokens: np.ndarray,
    private_tokens: int,
    window: int,
) -> Forest:
    """Prune, merge and order path nodes.

    Rows that have left a node behind their windows do not read it. Where none of those below a node
    sees what is above it, they are a tree of their own, which begins at the first token that any of
    them sees.

    Args:
        above_of, end, leaf_of: `RadixPaths.parent`, `end` and `leaf`. tokens: ``[B]`` of each row.
        private_tokens: tokens at each row's end that are private whatever the paths say.
        window: newest tokens that a row sees; 0 for all.
    """
    batch, num_paths = len(leaf_of), len(end)
    # runs nest, and each has two readers and other ones than its parent: fewer runs than rows
    most_shared = min(num_paths, max(batch - 1, 0))
    nodes, order = nodes_of(most_shared + batch), ints(batch)
    deepest = ints(batch)  # node that each row uses, or num_paths
    run = ints(num_paths + 1)  # readers of each node, then its run or -1
    inner = ints(most_shared + 1)  # at n + 1: readers of the runs below run n
    edge = ints(num_paths + 1)  # of each node, the first token that any of its readers sees

    if window:
        for n in range(num_paths):
            edge[n] = end[n]
    # nodes are a token or longer: at most `private_tokens` steps from a leaf within its row
    for row in range(batch):
        n, limit = leaf_of[row], tokens[row] - private_tokens
        while n >= 0 and end[n] > limit:
            n = above_of[n]
        first = first_seen(tokens[row], window)
        used = num_paths if n < 0 or (window and end[n] <= first) else n
        deepest[row] = used
        run[used] += 1
        edge[used] = min(edge[used], first)
    run[num_paths] = -1
    for n in range(num_paths - 1, -1, -1):
        above = above_of[n]
        if above >= 0 and not _is_left_behind(end[above], edge[n], window):
            run[above] += run[n]
            edge[above] = min(edge[above], edge[n])

    # a node survives with two readers; it joins its parent when the readers are the same
    shared = 0
    for n in range(num_paths):
        readers = run[n]
        above = above_of[n]
        is_top = above < 0 or _is_left_behind(end[above], edge[n], window)
        above = -1 if is_top else run[above]
        if readers < 2 or (above >= 0 and nodes[above].last == readers):
            run[n] = above
            if readers >= 2:
                nodes[above].length = end[n] - nodes[above].start
            continue
        node = nodes[shared]
        node.parent = above
        node.start = edge[n] if above < 0 else nodes[above].start + nodes[above].length
        node.length = end[n] - node.start
        node.last = readers
        inner[above + 1] += readers
        run[n] = shared
        shared += 1

    # depth first: rows that share nothing, then a node's own rows and its children's
    roots = batch - inner[0]
    inner[0] = 0
    for n in range(shared):
        node = nodes[n]
        readers = node.last
        if node.parent < 0:
            node.first = roots
            roots += readers
        else:
            node.first = nodes[node.parent].last
            nodes[node.parent].last += readers
        node.last = node.first + readers - inner[n + 1]  # its children move it to its end
        inner[n + 1] = node.first  # from here on where the next row of its own goes
    for row in range(batch):
        above = run[deepest[row]]
        position = inner[above + 1]
        inner[above + 1] = position + 1
        order[position] = row
        tail = nodes[shared + position]
        tail.parent = above
        tail.start = first_seen(tokens[row], window)
        if above >= 0:
            tail.start = nodes[above].start + nodes[above].length
        tail.length = tokens[row] - tail.start
        tail.first = position
        tail.last = position + 1
    return Forest(order, nodes[: shared + batch], shared)


@leaf
def first_seen(tokens: int, window: int) -> int:
    """The first token that a row of so many tokens sees."""
    return max(tokens - window, 0) if window > 0 else 0


@leaf
def _is_left_behind(end: int, edge: int, window: int) -> bool:
    """Whether a node that ends there is behind the windows of rows whose least edge this is."""
    return window > 0 and end <= edge


@compiled
def depth_of(forest: Forest) -> int:
    """Nodes on the longest path, tails included."""
    depth, deepest = ints(len(forest.nodes)), 0
    for n in range(len(forest.nodes)):
        node = forest.nodes[n]
        depth[n] = 1 if node.parent < 0 else depth[node.parent] + 1
        if node.length > 0:
            deepest = max(deepest, depth[n])
    return deepest
