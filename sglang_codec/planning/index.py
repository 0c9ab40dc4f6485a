"""The KV index of a forest that knows its slots, as a plan wants it."""

from __future__ import annotations

import numpy as np

from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.plan import Plan


def kv_index_of(forest: PrefixForest, plan: Plan) -> np.ndarray:
    """int32 ``[plan.kv_entries]``: the KV index of a forest that carries its slots.

    Raises:
        ValueError: the forest was built without slots, or its slots are none of its nodes.
    """
    if forest.kv_slots is None:
        raise ValueError(
            "this forest has no KV slots: build it with PrefixForest.from_paths or from_kv_indices"
        )
    forest = forest.checked()
    out = np.zeros(plan.kv_entries, np.int32)
    position = np.empty(forest.batch, np.int64)
    position[forest.order] = np.arange(forest.batch)
    # every span copies its own node, and the absorbed ancestors that its first tokens come from
    row, start, length, entry = plan.spans.T.astype(np.int64)
    end = start + length
    node = _nodes_ending_at(forest, position[row], end)
    while len(node):
        # a span may begin inside a node
        begin = np.maximum(forest.start[node], start)
        skipped = begin - forest.start[node]
        source = forest.kv_offset[node] + skipped
        _copy_runs(out, entry + begin - start, forest.kv_slots, source, end - begin)
        more = begin > start
        node, start, entry, end = forest.parent[node][more], start[more], entry[more], begin[more]
    return out


def _nodes_ending_at(forest: PrefixForest, position: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The node on each position's path that ends at token `end` (the shortest-lived one)."""
    node = forest.num_shared + position
    ends = forest.start + forest.length
    while True:
        # an empty tail, or a tail behind the run in question
        beyond = (forest.start[node] >= end) | (ends[node] != end)
        if not beyond.any():
            return node
        node = np.where(beyond, forest.parent[node], node)


def _copy_runs(
    out: np.ndarray, target: np.ndarray, source: np.ndarray, offset: np.ndarray, length: np.ndarray
) -> None:
    within = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
    out[np.repeat(target, length) + within] = source[np.repeat(offset, length) + within]
