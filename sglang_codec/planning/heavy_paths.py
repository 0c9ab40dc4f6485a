"""A forest as paths, each from a node down to the tail of one row: no token is in two of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sglang_codec.planning.forest import PrefixForest


@dataclass(frozen=True, slots=True)
class HeavyPaths:
    """Paths that go on to the child with most readers; the other children begin paths of their own.

    Nodes are named by their *place*: path after path, each from its top down to a tail, and a path
    behind the one that its top hangs below. There are as many paths as rows.

    Args:
        node: int ``[N]``, forest node at each place.
        top: int ``[B + 1]``, place at which each path begins.
        path: int ``[N]``, path of each place.
        above: int ``[B]``, place that the top of each path hangs below, -1 at a root.
        end: int64 ``[N]``, token at which the node at each place ends.
        readers: int ``[N]``, its rows. onward: int ``[N]``, those that stay on the path, 0 of a
            tail.
    """

    node: np.ndarray
    top: np.ndarray
    path: np.ndarray
    above: np.ndarray
    end: np.ndarray
    readers: np.ndarray
    onward: np.ndarray

    @classmethod
    def of(cls, forest: PrefixForest) -> HeavyPaths:
        nodes, parent = forest.num_nodes, forest.parent
        heavy = np.full(forest.num_shared, -1)
        # of repeated indices the last one is kept: most readers, then most tokens
        below = np.lexsort((forest.length, forest.readers))
        below = below[parent[below] >= 0]
        heavy[parent[below]] = below

        top = list(range(nodes))
        for above, child in enumerate(heavy.tolist()):
            top[child] = top[above]  # parents precede children
        node = np.argsort(top, kind="stable")
        place = np.empty(nodes, np.int64)
        place[node] = np.arange(nodes)
        is_top = np.asarray(top)[node] == node
        tops = np.flatnonzero(is_top)
        hangs_below = parent[node[tops]]
        readers = forest.readers[node].astype(np.int64)
        stays = np.append(~is_top, False)[1:]
        return cls(
            node=node,
            top=np.append(tops, nodes),
            path=np.cumsum(is_top) - 1,
            above=np.where(hangs_below >= 0, place[hangs_below], -1),
            end=(forest.start[node].astype(np.int64) + forest.length[node]),
            readers=readers,
            onward=np.where(stays, np.append(readers, 0)[1:], 0),
        )
