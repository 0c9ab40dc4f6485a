"""Cut query tiles along the KV axis so that no program slot has to wait for one of them."""

from __future__ import annotations

import math

import numpy as np

from sglang_codec.planning.compiled import compiled, leaf
from sglang_codec.planning.machine import tokens_in, up
from sglang_codec.planning.tables import ints, view
from sglang_codec.planning.tiles import chunk_tokens, chunk_us, put_chunk

_TOLERANCE = 0.01  # of the target
_GROWTH = 1.25  # of the bracket, while the target is too small


@compiled
def smallest_target(items: np.ndarray, machine: np.record, busy: float) -> tuple[float, float]:
    """The paper's heuristic: a binary search for the smallest longest chunk.

    That is the smallest ``c`` at which the items, cut into as few chunks of at most ``c``
    microseconds as possible, fit with `busy` other microseconds into ``num_slots * c`` together.

    Returns:
        ``c``, and the time of the smallest chunk, below which it is never.
    """
    slots, uncut, smallest = machine.num_slots, busy, math.inf
    for i in range(len(items)):
        uncut += items[i].us
        smallest = min(smallest, chunk_us(items[i], machine, machine.block_kv))
    # uncut items leave no slot more to do than this, and cutting only adds
    low = max(smallest, uncut / slots)
    high, size = low, view(ints(machine.num_tiles), np.float64)
    while busy + _work(items, machine, high, size) > slots * high:
        low = high
        high *= _GROWTH
    while high - low > _TOLERANCE * high:
        middle = (low + high) / 2
        if busy + _work(items, machine, middle, size) <= slots * middle:
            high = middle
        else:
            low = middle
    return high, smallest


@leaf
def _work(items: np.ndarray, machine: np.record, us: float, size: np.ndarray) -> float:
    """Microseconds of all items, cut into equal chunks of at most `us`; `size` is scratch."""
    block, total = float(machine.block_kv), 0.0
    for tile in range(len(size)):
        size[tile] = max(tokens_in(machine, tile, us), block)
    for i in range(len(items)):
        item = items[i]
        # not in whole blocks: rounding here makes a chunk more than there are slots look feasible
        tokens = size[item.tile]
        if item.share != 1:
            tokens = max(chunk_tokens(item, machine, us), block)
        if item.tokens <= tokens:
            total += item.us
            continue
        chunks = np.ceil(item.tokens / tokens)
        total += chunks * chunk_us(item, machine, item.tokens / chunks)
    return total


@leaf
def chunk_size(item: np.record, machine: np.record, target: float) -> int:
    """Tokens of each chunk of an item: equal ones of about `target` microseconds, whole blocks.

    A target of 0 is for no cut.
    """
    if target == 0:
        return item.tokens
    block = machine.block_kv
    size = max(chunk_tokens(item, machine, target), float(block))
    chunks = np.ceil(item.tokens / size)
    return int(np.ceil(item.tokens / chunks / block)) * block


@leaf
def count_chunks(items: np.ndarray, machine: np.record, target: float) -> int:
    chunks = 0
    for i in range(len(items)):
        chunks += up(items[i].tokens, chunk_size(items[i], machine, target))
    return chunks


@leaf
def divide(items: np.ndarray, machine: np.record, target: float, tasks: np.ndarray) -> int:
    """Writes the chunks of all items from 0 on; returns how many."""
    done = 0
    for i in range(len(items)):
        tokens, size = items[i].tokens, chunk_size(items[i], machine, target)
        for begin in range(0, tokens, size):
            put_chunk(tasks[done], items, i, begin, min(size, tokens - begin), 0, machine)
            done += 1
    return done
