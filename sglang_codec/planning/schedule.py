"""Assign tasks to a fixed number of program slots, longest first."""

from __future__ import annotations

import numpy as np

from sglang_codec.planning.compiled import compiled, leaf
from sglang_codec.planning.tables import ints, keys_of, view

_SHORT = 8  # places that are sorted by insertion


@compiled
def longest_first(tasks: np.ndarray, slots: int) -> np.ndarray:
    """Each task, longest first, goes to the slot that is free earliest.

    Ties fall to the lower slot and the lower task, so equal input gives an equal schedule.

    Args:
        tasks: a table of `TASK`; `slot` is written.

    Returns:
        float64 ``[slots]``, microseconds of each.
    """
    order, heap, load = keys_of(len(tasks)), ints(slots), view(ints(slots), np.float64)
    for t in range(len(tasks)):
        order[t].key = -tasks[t].us
        order[t].place = t
    sort(order)
    for s in range(slots):
        heap[s] = s  # loads are equal: any order is a heap
    for i in range(len(tasks)):
        task, top, at, child = tasks[order[i].place], heap[0], 0, 1
        task.slot = top
        busy = load[top] + task.us
        load[top] = busy
        while child < slots:
            other = heap[child]
            if child + 1 < slots:
                right = heap[child + 1]
                if load[right] < load[other] or (load[right] == load[other] and right < other):
                    child += 1
                    other = right
            if load[other] > busy or (load[other] == busy and other > top):
                break
            heap[at] = other
            at = child
            child = 2 * at + 1
        heap[at] = top
    return load


@compiled
def sort(keys: np.ndarray) -> None:
    """Sorts a table of `KEY`; equal ones stay as they are."""
    count = len(keys)
    for low in range(0, count, _SHORT):
        for i in range(low + 1, min(low + _SHORT, count)):
            key, place, at = keys[i].key, keys[i].place, i
            while at > low and keys[at - 1].key > key:
                keys[at] = keys[at - 1]
                at -= 1
            keys[at].key = key
            keys[at].place = place
    left, width = keys_of(count), _SHORT
    while width < count:
        for low in range(0, count - width, 2 * width):
            _merge(keys, low, low + width, min(low + 2 * width, count), left)
        width *= 2


@leaf
def _merge(keys: np.ndarray, low: int, middle: int, high: int, left: np.ndarray) -> None:
    """Merges the sorted ``[low, middle)`` and ``[middle, high)``; `left` is scratch."""
    if keys[middle - 1].key <= keys[middle].key:
        return
    size = middle - low
    for i in range(size):
        left[i] = keys[low + i]
    taken, right, at = 0, middle, low
    while taken < size:
        if right < high and keys[right].key < left[taken].key:
            keys[at] = keys[right]
            right += 1
        else:
            keys[at] = left[taken]
            taken += 1
        at += 1
