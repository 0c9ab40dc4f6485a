"""Cut work items like a tape: end to end, every slot takes as much as it has room for."""

from __future__ import annotations

import numpy as np

from sglang_codec.planning.cost_model import CostModel


def cut_tape(
    rows: np.ndarray,
    tokens: np.ndarray,
    *,
    cost_model: CostModel,
    busy: np.ndarray,
    block_kv: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Divide and schedule in one go: at most one cut per slot, all slots busy about equally long.

    The items lie end to end, longest first, each as long as its predicted microseconds, and every
    slot takes a piece of the tape that fills it up to the common level. A cut falls on a whole
    block of its item and costs the overhead of one more task; where that is an end of the item, the
    item stays whole.

    Args:
        rows: ``[K]`` M side of each item's query tile. tokens: ``[K]`` its KV tokens, at least 1.
        busy: ``[num_slots]`` microseconds that each slot has to do besides.

    Returns:
        ``item``, ``begin`` (tokens into the item) and ``slot`` of each task, int64 ``[T]``, in tape
        order; a task ends where its item's next one begins.
    """
    rows, tokens = np.asarray(rows), np.asarray(tokens, np.int64)
    # longest first: what is cut depends on the items, not on the order they came in
    along = np.lexsort((-tokens, -rows))
    rows, tokens = rows[along], tokens[along]
    us = cost_model.task_us(rows, tokens)
    end = np.cumsum(us)

    cuts = np.cumsum(_room(busy, float(end[-1])))[:-1]
    item = np.minimum(np.searchsorted(end, cuts, side="right"), len(tokens) - 1)
    into = cuts - (end[item] - us[item])
    # before the first token there is only the overhead: such a cut is at the begin
    blocks = cost_model.tokens_in(rows[item], into) / block_kv
    offset = np.rint(blocks).astype(np.int64) * block_kv
    # half a block or less is not cut off, and what is not cut falls to the side that has more
    at_end = np.where(offset > 0, offset >= tokens[item] - block_kv / 2, into > us[item] / 2)
    offset[at_end] = 0
    item = item + at_end  # an item's end is the next one's begin

    # a task begins at every item and at every cut inside one; its slot is the number of cuts so far
    place = item * (1 << 40) + offset
    starts = np.union1d(np.arange(len(tokens)) * (1 << 40), place[offset > 0])
    slot = np.searchsorted(place, starts, side="right")
    return along[starts >> 40], starts & ((1 << 40) - 1), slot


def _room(busy: np.ndarray, us: float) -> np.ndarray:
    """How many of `us` microseconds each slot takes so that all are busy to the same level."""
    if not busy.any():
        return np.full(len(busy), us / len(busy))
    lowest = np.sort(busy)
    # the level if exactly the n lowest slots take part
    level = (us + np.cumsum(lowest)) / np.arange(1, len(busy) + 1)
    taking = int(np.flatnonzero(level > lowest)[-1])
    return np.maximum(level[taking] - busy, 0.0)
