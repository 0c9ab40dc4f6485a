"""Ways to cut query tiles into tasks and to hand the tasks to program slots, for the ablation.

A cut maps ``rows [I]`` (M side of each query tile), ``tokens [I]`` (its KV tokens, at least 1) and
``busy [S]`` (microseconds that each slot has to do besides) to ``item``, ``begin`` (tokens into the
item), ``tokens`` and ``slot`` of the tasks, each int64 ``[T]``.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

from sglang_codec.planning.cost_model import CostModel
from sglang_codec.planning.division import chunk_sizes
from sglang_codec.planning.plan import PlanSpec

Tasks = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Cut = Callable[[np.ndarray, np.ndarray, np.ndarray], Tasks]

PAGES = (64, 256)  # tokens
SPLITS = 8


def cuts(spec: PlanSpec, cost_model: CostModel) -> dict[str, Cut | None]:
    """The plans under comparison, by name; None is the planner's own."""
    ways = {
        "division, longest first": division(spec, cost_model, longest_first=True),
        "division, round robin": division(spec, cost_model, longest_first=False),
        **{f"pages of {size}, round robin": pages(spec, size) for size in PAGES},
        f"{SPLITS} splits each": splits(spec, SPLITS),
        "splits that fill the slots": splits(spec, None),
    }
    return {"planner": None, **{name: unless_empty(cut) for name, cut in ways.items()}}


def unless_empty(cut: Cut) -> Cut:
    """No tasks where there is nothing to cut, as in a batch of bundles alone."""

    def careful(rows: np.ndarray, tokens: np.ndarray, busy: np.ndarray) -> Tasks:
        if not len(tokens):
            return (np.zeros(0, np.int64),) * 4
        return cut(rows, tokens, busy)

    return careful


def division(spec: PlanSpec, cost_model: CostModel, *, longest_first: bool) -> Cut:
    """The paper's division without the tape, each task to the slot that is free first or next."""

    def cut(rows: np.ndarray, tokens: np.ndarray, busy: np.ndarray) -> Tasks:
        size = chunk_sizes(
            rows,
            tokens,
            cost_model=cost_model,
            num_slots=spec.num_slots,
            block_kv=spec.block_kv,
        )
        item, begin, length = chunks(tokens, size)
        if not longest_first:
            return item, begin, length, round_robin(len(item), spec.num_slots)
        return item, begin, length, free_first(cost_model.task_us(rows[item], length), busy)

    return cut


def pages(spec: PlanSpec, size: int) -> Cut:
    """Chunks of one size whatever the item, dealt out in turn: splitting without balancing."""

    def cut(rows: np.ndarray, tokens: np.ndarray, busy: np.ndarray) -> Tasks:
        item, begin, length = chunks(tokens, np.full(len(tokens), size))
        return item, begin, length, round_robin(len(item), spec.num_slots)

    return cut


def splits(spec: PlanSpec, number: int | None) -> Cut:
    """As many equal chunks of every item, as FlashDecoding splits KV, dealt out in turn.

    Args:
        number: chunks of an item; None for the least with as many tasks as slots.
    """

    def cut(rows: np.ndarray, tokens: np.ndarray, busy: np.ndarray) -> Tasks:
        each = number or -(-spec.num_slots // len(tokens))
        blocks = -(-tokens // (each * spec.block_kv))
        item, begin, length = chunks(tokens, blocks * spec.block_kv)
        return item, begin, length, round_robin(len(item), spec.num_slots)

    return cut


def chunks(tokens: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``item``, ``begin`` and ``tokens`` of chunks of ``size [I]`` tokens, in item order."""
    tokens = np.asarray(tokens, np.int64)
    number = -(-tokens // size)
    item = np.repeat(np.arange(len(tokens)), number)
    begin = (np.arange(len(item)) - np.repeat(np.cumsum(number) - number, number)) * size[item]
    return item, begin, np.minimum(tokens[item] - begin, size[item])


def round_robin(tasks: int, num_slots: int) -> np.ndarray:
    return np.arange(tasks) % num_slots


def free_first(us: np.ndarray, busy: np.ndarray) -> np.ndarray:
    """Each task, longest first, to the slot that is free earliest."""
    free = [(load, slot) for slot, load in enumerate(busy.tolist())]
    heapq.heapify(free)
    slot_of = np.zeros(len(us), np.int64)
    for task in np.argsort(-us, kind="stable").tolist():
        load, slot = free[0]
        slot_of[task] = slot
        heapq.heapreplace(free, (load + float(us[task]), slot))
    return slot_of
