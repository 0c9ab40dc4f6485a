"""Which shared runs are too short to be read on their own, and join the runs below them."""

from __future__ import annotations

import numpy as np

from sglang_codec.planning.forest import PrefixForest


def absorb_short_runs(
    forest: PrefixForest, *, kv_token_bytes: float, partial_bytes: float
) -> np.ndarray:
    """bool ``[num_shared]``: nodes whose tokens each child reads again in front of its own.

    A run of ``l`` tokens with ``s`` readers and ``c`` children, read on its own, saves
    ``(c - 1) l`` tokens of KV traffic and costs ``s`` more partial results, each written once and
    read once. It is absorbed when the saving is the smaller of the two. Tokens that an absorbed
    ancestor passed down count as the node's own.

    Args:
        kv_token_bytes: bytes of K and V of one token and one KV head.
        partial_bytes: bytes of one row's partial result for one KV head (all heads of its group).
    """
    num_shared = forest.num_shared
    absorbed = np.zeros(num_shared, bool)
    if not num_shared:
        return absorbed
    children = np.bincount(forest.parent[forest.parent >= 0], minlength=num_shared)
    extra_partials = (2 * partial_bytes * forest.readers[:num_shared]).tolist()
    parent, length = forest.parent.tolist(), forest.length.tolist()
    passed_down = [0] * num_shared
    for node, more_readers in enumerate((children - 1).tolist()):
        above = parent[node]
        if above >= 0 and absorbed[above]:
            passed_down[node] = passed_down[above] + length[above]
        tokens = passed_down[node] + length[node]
        absorbed[node] = more_readers * tokens * kv_token_bytes <= extra_partials[node]
    return absorbed


def absorbed_starts(forest: PrefixForest, absorbed: np.ndarray) -> np.ndarray:
    """int32 ``[N]``: first token of each node once its absorbed ancestors are in front of it."""
    start = forest.start.copy()
    parent = forest.parent.tolist()
    for node in range(forest.num_shared):
        if parent[node] >= 0 and absorbed[parent[node]]:
            start[node] = start[parent[node]]
    tails = slice(forest.num_shared, None)
    above = forest.parent[tails]
    joins = (above >= 0) & np.append(absorbed, False)[above]
    start[tails] = np.where(joins, np.append(start[: forest.num_shared], 0)[above], start[tails])
    return start
