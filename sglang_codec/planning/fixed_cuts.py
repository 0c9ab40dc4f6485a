"""Ways to cut query tiles that are no better: what the planner's own is compared with."""

from __future__ import annotations

import numpy as np

from sglang_codec.planning.compiled import compiled, leaf
from sglang_codec.planning.division import chunk_size, smallest_target
from sglang_codec.planning.machine import up
from sglang_codec.planning.tiles import put_chunk

DIVISION, PAGES, SPLITS = 1, 2, 3  # `MACHINE.cut`


@leaf
def _size(items: np.ndarray, i: int, machine: np.record, target: float) -> int:
    """Tokens of each chunk of item `i`."""
    if machine.cut == DIVISION:
        return chunk_size(items[i], machine, target)
    if machine.cut == PAGES:
        return machine.cut_size
    # as FlashDecoding splits KV; without a number the least with as many tasks as slots
    number = machine.cut_size if machine.cut_size else up(machine.num_slots, len(items))
    return up(items[i].tokens, number * machine.block_kv) * machine.block_kv


@compiled
def _target(items: np.ndarray, machine: np.record, busy: float) -> float:
    if machine.cut != DIVISION or not len(items):
        return 0.0
    return smallest_target(items, machine, busy)[0]


@compiled
def count_told(items: np.ndarray, machine: np.record, busy: float) -> int:
    """Tasks of `cut_as_told`."""
    count, target = 0, _target(items, machine, busy)
    for i in range(len(items)):
        count += up(items[i].tokens, _size(items, i, machine, target))
    return count


@compiled
def cut_as_told(items: np.ndarray, machine: np.record, busy: float, tasks: np.ndarray) -> int:
    """Writes chunks as the `MACHINE` says, dealt out in turn; returns how many.

    Args:
        items: a table of `ITEM`. busy: microseconds of everything else. tasks: a table of `TASK`.
    """
    done, target = 0, _target(items, machine, busy)
    for i in range(len(items)):
        tokens, size = items[i].tokens, _size(items, i, machine, target)
        for begin in range(0, tokens, size):
            slot = done % machine.num_slots
            put_chunk(tasks[done], items, i, begin, min(size, tokens - begin), slot, machine)
            done += 1
    return done
