"""Query tiles of the runs, and the tasks that they are cut into."""

from __future__ import annotations

import numpy as np

from sglang_codec.planning.compiled import compiled, leaf
from sglang_codec.planning.machine import task_us, tokens_in, up
from sglang_codec.planning.reading import Reading
from sglang_codec.planning.tables import ITEM, ints, tasks_of, view

# tiles of one run that are read at the same time share what comes from memory; this much of the
# time of a tile remains at the least: its arithmetic
LEAST_SHARE = 0.85


@leaf
def tile_share(readers: int, largest: int) -> float:
    """Of the cost model's time, for each of the tiles of a run that hold `largest` queries."""
    return max(1.0 / max(1, up(readers, largest)), LEAST_SHARE)


@compiled
def query_tiles(reading: Reading, machine: np.record, sizes: int) -> np.ndarray:
    """Each run's readers in tiles of the first `sizes` sizes: a table of `ITEM`."""
    runs, row_tiles, rows = reading.runs, machine.row_tiles, machine.request_rows
    largest, count = row_tiles[sizes - 1] // rows, 0
    for r in range(len(runs)):
        count += up(runs[r].last - runs[r].first, largest)
    items, done = view(ints(8 * count), ITEM), 0
    for r in range(len(runs)):
        run = runs[r]
        share = tile_share(run.last - run.first, largest)
        for first in range(run.first, run.last, largest):
            item, tile = items[done], 0
            item.run = r
            item.first = first
            item.queries = min(run.last - first, largest)
            while row_tiles[tile] // rows < item.queries:
                tile += 1
            item.tile = tile
            item.start = run.start
            item.tokens = run.length
            item.share = share
            item.us = share * task_us(machine, tile, run.length)
            done += 1
    return items


@leaf
def chunk_us(item: np.record, machine: np.record, tokens: float) -> float:
    """Microseconds of so many tokens of an item."""
    return item.share * task_us(machine, item.tile, tokens)


@leaf
def chunk_tokens(item: np.record, machine: np.record, us: float) -> float:
    """Tokens of an item that take `us`."""
    return tokens_in(machine, item.tile, us / item.share)


@leaf
def put_chunk(
    task: np.record,
    items: np.ndarray,
    i: int,
    begin: int,
    tokens: int,
    slot: int,
    machine: np.record,
) -> None:
    """Makes `task` the chunk of item `i` that begins `begin` tokens into it."""
    item = items[i]
    task.source = i
    task.begin = begin
    task.first = item.first
    task.queries = item.queries
    task.tokens = tokens
    task.slot = slot
    task.us = chunk_us(item, machine, tokens)


@compiled
def bundle_tasks(reading: Reading, machine: np.record, room: int) -> np.ndarray:
    """A table of `TASK`: the bundles, and behind them room for more."""
    bundles, kind = reading.bundles, machine.num_tiles
    tasks = tasks_of(len(bundles) + room)
    for b in range(len(bundles)):
        bundle, task = bundles[b], tasks[b]
        task.source = -1 - b
        task.first = bundle.first
        task.queries = bundle.last - bundle.first
        for i in range(bundle.begin, bundle.end):
            task.tokens += reading.pieces[i].length
        task.us = task_us(machine, kind, task.tokens)
    return tasks
