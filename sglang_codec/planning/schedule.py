"""Assign tasks to a fixed number of program slots, longest first."""

from __future__ import annotations

import heapq

import numpy as np


def longest_first(us: np.ndarray, num_slots: int) -> tuple[np.ndarray, np.ndarray]:
    """LPT schedule: each task, longest first, goes to the slot that is free earliest.

    Args:
        us: ``[T]`` predicted microseconds of each task.

    Returns:
        ``slot`` int32 ``[T]`` and ``load`` float64 ``[num_slots]``. Ties fall to the lower slot and
        the lower task, so equal input gives an equal schedule.
    """
    slot = np.zeros(len(us), np.int32)
    load = [0.0] * num_slots
    order = np.argsort(-us, kind="stable")
    free = [(0.0, s) for s in range(num_slots)]
    cost = us.tolist()
    for task in order.tolist():
        busy, s = free[0]
        slot[task] = s
        load[s] = busy + cost[task]
        heapq.heapreplace(free, (load[s], s))
    return slot, np.asarray(load)
