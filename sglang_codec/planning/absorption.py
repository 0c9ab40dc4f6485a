"""Which shared runs are too short to be read on their own, and join the runs below them."""

from __future__ import annotations

import numpy as np

from sglang_codec.planning.forest import PrefixForest


def absorb_short_runs(
    forest: PrefixForest,
    *,
    readers: np.ndarray,
    children: np.ndarray,
    kv_token_bytes: float,
    partial_bytes: float,
) -> np.ndarray:
    """bool ``[num_shared]``: nodes whose tokens each child reads again in front of its own.

    A run of ``l`` tokens with ``s`` readers and ``c`` children, read on its own, saves
    ``(c - 1) l`` tokens of KV traffic and costs ``s`` more partial results, each written once and
    read once. It is absorbed when the saving is the smaller of the two. Tokens that an absorbed
    ancestor passed down count as the node's own.

    Args:
        readers: int ``[num_shared]``, rows that get a partial result from each shared run.
        children: int ``[num_shared]``, shared runs, bundles and single rows right below it.
        kv_token_bytes: bytes of K and V of one token and one KV head.
        partial_bytes: bytes of one row's partial result for one KV head (all heads of its group).
    """
    absorbed = [False] * forest.num_shared
    passed_down = [0] * forest.num_shared
    parent, length = forest.parent.tolist(), forest.length.tolist()
    worth = (2 * partial_bytes / kv_token_bytes * readers).tolist() if kv_token_bytes else None
    for node, more_readers in enumerate((children - 1).tolist()):
        above = parent[node]
        if above >= 0 and absorbed[above]:
            passed_down[node] = passed_down[above] + length[above]
        tokens = passed_down[node] + length[node]
        absorbed[node] = worth is None or more_readers * tokens <= worth[node]
    return np.array(absorbed, bool)


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
