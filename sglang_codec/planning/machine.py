"""What every stage of the planner sees: the machine, the time of a task, and rounding."""

from __future__ import annotations

import numpy as np

from sglang_codec.planning.compiled import leaf
from sglang_codec.planning.tables import MOST_POINTS

ALIGNED_ENTRIES = 4  # as in plan.py
SHORT_TASK = 1024.0  # tokens up to which a task's line is drawn


@leaf
def interpolate(x: float, xs: np.ndarray, ys: np.ndarray, low: int, high: int) -> float:
    """`ys` at `x` on straight lines through the points ``[low, high]``, constant beyond them."""
    if x <= xs[low]:
        return ys[low]
    if x >= xs[high]:
        return ys[high]
    while high - low > 1:
        middle = (low + high) >> 1
        if xs[middle] <= x:
            low = middle
        else:
            high = middle
    return ys[low] + (x - xs[low]) * (ys[high] - ys[low]) / (xs[high] - xs[low])


@leaf
def task_us(machine: np.record, kind: int, tokens: float) -> float:
    """Microseconds of a task of a class."""
    low = kind * MOST_POINTS
    return interpolate(tokens, machine.tokens, machine.us, low, low + machine.points - 1)


@leaf
def tokens_in(machine: np.record, kind: int, us: float) -> float:
    """Tokens of a task of a class that takes `us`; 0 where that is too little."""
    low = kind * MOST_POINTS
    return interpolate(us, machine.us, machine.tokens, low, low + machine.points - 1)


@leaf
def smallest_tile(machine: np.record) -> int:
    """The class of the smallest query tiles that hold a request."""
    tile = 0
    while machine.row_tiles[tile] < machine.request_rows:
        tile += 1
    return tile


@leaf
def token_us(machine: np.record, kind: int) -> float:
    """Microseconds that a token adds to a short task of a class."""
    start_up = machine.us[kind * MOST_POINTS]
    return (task_us(machine, kind, SHORT_TASK) - start_up) / SHORT_TASK


@leaf
def up(value: int, unit: int) -> int:
    """`value` in units, a part of one counted whole."""
    return (value + unit - 1) // unit


@leaf
def aligned(entries: int) -> int:
    """Entries of a run or a bundle, rounded up so that the next one begins where it may."""
    return up(entries, ALIGNED_ENTRIES) * ALIGNED_ENTRIES
