"""Cut work items along the KV axis so that no program slot has to wait for one of them."""

from __future__ import annotations

import numpy as np

from sglang_codec.planning.cost_model import CostModel

_TOLERANCE = 0.01  # of the target
_GROWTH = 1.25  # of the bracket, while the target is too small


def chunk_sizes(
    rows: np.ndarray,
    tokens: np.ndarray,
    *,
    cost_model: CostModel,
    num_slots: int,
    block_kv: int,
    finer: float = 1.0,
) -> np.ndarray:
    """int64 ``[K]``: tokens per chunk of each work item, a multiple of `block_kv`.

    The paper's heuristic: a binary search for the smallest target ``c`` at which the items, cut
    into as few chunks of at most ``c`` microseconds as possible, fit into ``num_slots * c``
    together. Sizes become whole blocks only then. The target is never below the time of the
    smallest chunk.

    Args:
        rows: ``[K]`` M side of each item's query tile.
        tokens: ``[K]`` KV tokens of each item, at least 1.
        finer: divide the target found by this, for smaller chunks that balance better.
    """
    tokens = np.asarray(tokens, np.float64)
    kinds, kind = np.unique(rows, return_inverse=True)
    groups = [_Group(cost_model, int(k), tokens[kind == i], block_kv) for i, k in enumerate(kinds)]
    smallest = min(group.one_block for group in groups)

    # uncut items leave no slot more to do than this, and cutting only adds
    low = max(smallest, sum(group.uncut for group in groups) / num_slots)
    high = low
    while sum(group.work(high) for group in groups) > num_slots * high:
        low, high = high, high * _GROWTH
    while high - low > _TOLERANCE * high:
        target = (low + high) / 2
        if sum(group.work(target) for group in groups) <= num_slots * target:
            high = target
        else:
            low = target

    target = max(high / finer, smallest)
    size = np.array([group.size(target) for group in groups])[kind]
    # equal chunks rather than full ones and a rest
    chunks = np.ceil(tokens / size)
    return (np.ceil(tokens / chunks / block_kv) * block_kv).astype(np.int64)


class _Group:
    """The items of one query tile size."""

    def __init__(self, cost_model: CostModel, rows: int, tokens: np.ndarray, block_kv: int) -> None:
        self.tokens, self.block_kv = tokens, block_kv
        self.grid, self.curve = cost_model.long_curve(rows)
        self.one_block = float(np.interp(block_kv, self.grid, self.curve))
        self.uncut = float(np.interp(tokens, self.grid, self.curve).sum())

    def size(self, us: float) -> float:
        """Tokens of a chunk that takes `us`, a block at least."""
        # not in whole blocks: rounding here makes a chunk more than there are slots look feasible
        return max(float(np.interp(us, self.curve, self.grid)), self.block_kv)

    def work(self, us: float) -> float:
        """Microseconds of all items, cut into chunks of at most `us`."""
        chunks = np.ceil(self.tokens / self.size(us))
        return float((chunks * np.interp(self.tokens / chunks, self.grid, self.curve)).sum())
