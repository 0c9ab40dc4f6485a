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
    block of its item; where that is the item's begin or end, the item stays whole there. Each cut
    costs the overhead of one more task.

    Args:
        rows: ``[K]`` M side of each item's query tile. tokens: ``[K]`` its KV tokens, at least 1.
        busy: ``[num_slots]`` microseconds that each slot has to do besides.

    Returns:
        ``item``, ``begin`` (tokens into the item) and ``slot`` of each task, int64 ``[T]``, in tape
        order; a task ends where its item's next one begins.
    """
    tokens = np.asarray(tokens, np.int64)
    # longest first: what is cut depends on the items, not on the order they came in
    along = np.lexsort((-tokens, -np.asarray(rows)))
    rows, tokens = np.asarray(rows)[along], tokens[along]
    kinds, kind = np.unique(rows, return_inverse=True)
    curves = [cost_model.long_curve(int(rows_of_kind)) for rows_of_kind in kinds]
    us = np.empty(len(tokens))
    for index, (grid, curve) in enumerate(curves):
        us[kind == index] = np.interp(tokens[kind == index], grid, curve)
    end = np.cumsum(us)

    room = _room(busy, float(end[-1]))
    cuts = np.cumsum(room)[:-1]
    item = np.minimum(np.searchsorted(end, cuts, side="right"), len(tokens) - 1)
    into = cuts - (end[item] - us[item])
    offset = np.empty(len(cuts))
    for index, (grid, curve) in enumerate(curves):
        here = kind[item] == index
        # before the first token there is only the task's overhead: such a cut is at the begin
        offset[here] = np.interp(into[here], curve, grid)
    offset = np.rint(offset / block_kv).astype(np.int64) * block_kv
    # less than half a block is not cut off, and what is not cut falls to the side that has more
    at_end = np.where(offset > 0, offset > tokens[item] - block_kv / 2, into > us[item] / 2)
    offset[at_end] = 0
    item = item + at_end  # an item's end is the next one's begin

    # a task begins at every item and at every cut inside one; its slot is the number of cuts so far
    inside = offset > 0
    starts_item = np.concatenate([np.arange(len(tokens)), item[inside]])
    starts_at = np.concatenate([np.zeros(len(tokens), np.int64), offset[inside]])
    by_place = np.lexsort((starts_at, starts_item))
    starts_item, starts_at = starts_item[by_place], starts_at[by_place]
    # two cuts may round to one place
    distinct = np.append(True, (np.diff(starts_item) > 0) | (np.diff(starts_at) > 0))
    starts_item, starts_at = starts_item[distinct], starts_at[distinct]
    longest = int(tokens.max()) + 1
    slot = np.searchsorted(item * longest + offset, starts_item * longest + starts_at, side="right")
    return along[starts_item], starts_at, slot


def _room(busy: np.ndarray, us: float) -> np.ndarray:
    """How many of `us` microseconds each slot takes so that all are busy to the same level."""
    if not busy.any():
        return np.full(len(busy), us / len(busy))
    lowest = np.sort(busy)
    # the level if exactly the n lowest slots take part
    level = (us + np.cumsum(lowest)) / np.arange(1, len(busy) + 1)
    taking = int(np.flatnonzero(level > lowest)[-1])
    return np.maximum(level[taking] - busy, 0.0)
