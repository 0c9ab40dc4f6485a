"""Cut work items along the KV axis so that no program slot has to wait for one of them."""

from __future__ import annotations

import numpy as np

from sglang_codec.planning.cost_model import CostModel

_SEARCH_STEPS = 18


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

    The paper's heuristic: a binary search for the smallest target ``c`` at which the items, cut into
    as few chunks of at most ``c`` microseconds as possible (give or take half a block), fit into
    ``num_slots * c`` together.
    The target is never below the time of the smallest chunk.

    Args:
        rows: ``[K]`` M side of each item's query tile.
        tokens: ``[K]`` KV tokens of each item, at least 1.
        finer: divide the target found by this, for smaller chunks that balance better.
    """
    tokens = np.asarray(tokens, np.float64)
    kinds, kind = np.unique(rows, return_inverse=True)
    one_block = cost_model.task_us(kinds, np.full(len(kinds), block_kv))
    smallest = float(one_block.min())
    # a block more than the sum, or whole blocks would cut even a lone item on one slot
    low, high = smallest, float(cost_model.task_us(rows, tokens).sum() + one_block.max())
    for _ in range(_SEARCH_STEPS):
        if high - low <= 0.01 * high:
            break
        target = (low + high) / 2
        size = _sizes_within(kinds, kind, target, cost_model, block_kv)
        chunks = np.ceil(tokens / size)
        work = chunks * cost_model.task_us(rows, tokens / chunks)
        if work.sum() <= num_slots * target:
            high = target
        else:
            low = target
    size = _sizes_within(kinds, kind, max(high / finer, smallest), cost_model, block_kv)
    # equal chunks rather than full ones and a rest
    chunks = np.ceil(tokens / size)
    return (np.ceil(tokens / chunks / block_kv) * block_kv).astype(np.int64)


def _sizes_within(
    kinds: np.ndarray, kind: np.ndarray, us: float, cost_model: CostModel, block_kv: int
) -> np.ndarray:
    # nearest, not floor: half a block more than the target beats a chunk more than there are slots
    blocks = np.round(cost_model.most_tokens(kinds, us) / block_kv)
    return (np.maximum(blocks, 1) * block_kv)[kind]
