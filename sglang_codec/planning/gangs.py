"""Tiles of one run that are too long for a slot are cut at the same tokens, side by side."""

from __future__ import annotations

import math

import numpy as np

from sglang_codec.planning.compiled import leaf
from sglang_codec.planning.machine import up
from sglang_codec.planning.tiles import chunk_us, put_chunk

_SLACK = 0.05  # of a slot's time that a gang's piece may be longer
_LONGEST = 1.1


@leaf
def cut_gangs(
    items: np.ndarray, level: float, machine: np.record, is_ganged: np.ndarray, tasks: np.ndarray
) -> int:
    """Cuts such tiles into pieces of a slot each; returns how many.

    The slots then read the same tokens at the same time, from memory once.

    Args:
        items: a table of `ITEM`. level: microseconds that each slot has to do.
        is_ganged: int64 ``[I]``, written: 0 before. tasks: a table of `TASK`, written; as many as
            slots at least.
    """
    done, taken, i = 0, 0, 0
    while i < len(items):
        item, tiles = items[i], 1
        while i + tiles < len(items) and _are_tiles_of_one_run(item, items[i + tiles]):
            tiles += 1
        pieces = int(math.ceil(item.us / level - _SLACK))
        pieces = min(pieces, (machine.num_slots - taken) // tiles)
        is_long = tiles > 1 and pieces > 1
        if is_long and chunk_us(item, machine, item.tokens // pieces) <= level * _LONGEST:
            size = up(item.tokens, pieces * machine.block_kv) * machine.block_kv
            for tile in range(i, i + tiles):
                is_ganged[tile] = 1
                for begin in range(0, item.tokens, size):
                    tokens = min(size, item.tokens - begin)
                    put_chunk(tasks[done], items, tile, begin, tokens, 0, machine)
                    done += 1
            taken += tiles * pieces
        i += tiles
    return done


@leaf
def _are_tiles_of_one_run(item: np.record, other: np.record) -> bool:
    return item.run == other.run and item.tile == other.tile
