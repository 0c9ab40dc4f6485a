"""The walk over the tasks of a slot: large tiles come first, then bundles, then small tiles."""

from __future__ import annotations

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from sglang_codec.kernels.hopper.rows import ROWS
from sglang_codec.kernels.query_rows import head_of
from sglang_codec.kernels.records import ALIGNED_ENTRIES, SLOT_INTS, TASK_INTS

SMALL, LARGE, BUNDLE = gl.constexpr(0), gl.constexpr(1), gl.constexpr(2)  # the classes of tasks
# in L2, for what every layer or POR reads again: behind the KV stream DRAM takes many times as long
KEPT = gl.constexpr("evict_last")


class Walk(NamedTuple):
    """How many tasks a slot has, and what is to be added to a task's turn to get its number."""

    records: Any  # where the plan's tasks begin
    total: Any
    last_large: Any
    last_bundle: Any
    to_class: Any  # of large, bundle and small


class Task(NamedTuple):
    """Class and fields of a task's record."""

    kind: Any
    kv_start: Any
    kv_len: Any
    first: Any
    queries: Any
    part: Any
    window: Any  # entries in front of the chunk, because it has to begin aligned, and where in its
    # rows the first of these entries would be; empty without a window
    tail: Any  # with several query rows, the row whose tail it is a chunk of, or -1, and where in
    # that row it begins; else empty


class TileRows(NamedTuple):
    """Of each row the request in its tile, the query head, and whether there is such a request."""

    query: Any
    head: Any
    valid: Any


@gluon.jit
def walk_of(given, slot, VARIANT: gl.constexpr):
    """The walk of a slot."""
    bounds = given.plan_ptr + slot * SLOT_INTS
    small = gl.load(bounds, eviction_policy=KEPT)
    small_end = gl.load(bounds + 1, eviction_policy=KEPT)
    large = small
    large_end = small
    bundle = small
    bundle_end = small
    for i in gl.static_range(len(VARIANT.CLASSES)):
        at = bounds + 2 * VARIANT.CLASSES[i][0]
        if VARIANT.CLASSES[i][3]:
            bundle = gl.load(at, eviction_policy=KEPT)
            bundle_end = gl.load(at + 1, eviction_policy=KEPT)
        elif VARIANT.CLASSES[i][1] > ROWS:
            large = gl.load(at, eviction_policy=KEPT)
            large_end = gl.load(at + 1, eviction_policy=KEPT)
    last_large = large_end - large
    last_bundle = last_large + bundle_end - bundle
    total = last_bundle + small_end - small
    to_class = (large, bundle - last_large, small - last_bundle)
    return Walk(given.plan_ptr + given.tasks_offset, total, last_large, last_bundle, to_class)


@gluon.jit
def task_of(walk, turn, VARIANT: gl.constexpr):
    """The task of a turn; of no tokens and no queries beyond the last."""
    is_task = turn < walk.total
    kind = SMALL
    task = turn + walk.to_class[2]
    if turn < walk.last_large:
        kind = LARGE
        task = turn + walk.to_class[0]
    elif turn < walk.last_bundle:
        kind = BUNDLE
        task = turn + walk.to_class[1]
    record = walk.records + task * TASK_INTS
    entry = gl.load(record, mask=is_task, other=0, eviction_policy=KEPT)
    # the planner aligns it: so many slots can be loaded at once
    kv_start = entry // ALIGNED_ENTRIES * ALIGNED_ENTRIES
    kv_len = gl.load(record + 1, mask=is_task, other=0, eviction_policy=KEPT)
    first = gl.load(record + 2, mask=is_task, other=0, eviction_policy=KEPT)
    queries = gl.load(record + 3, mask=is_task, other=0, eviction_policy=KEPT)
    part = gl.load(record + 4, mask=is_task, other=0, eviction_policy=KEPT)
    window = ()
    if VARIANT.WINDOW:
        # but what its rows have left is counted in single tokens
        head = entry - kv_start
        start = gl.load(record + 6, mask=is_task, other=0, eviction_policy=KEPT) - head
        window = (head, start)
        kv_len += gl.where(kv_len > 0, head, 0)
    tail = ()
    if VARIANT.QUERY_ROWS > 1:
        owner = gl.load(record + 5, mask=is_task, other=-1, eviction_policy=KEPT)
        tail = (owner, gl.load(record + 6, mask=is_task, other=0, eviction_policy=KEPT))
    return Task(kind, kv_start, kv_len, first, queries, part, window, tail)


@gluon.jit
def batch_rows(given, task, tile_row, VARIANT: gl.constexpr):
    """Requests that some rows of a task's query tile belong to; 0 where there is none."""
    query = tile_row // VARIANT.GROUP
    valid = query < task.queries
    order = given.plan_ptr + given.order_offset + task.first + query
    return gl.load(order, mask=valid, other=0, eviction_policy=KEPT)


@gluon.jit
def tile_rows(task, tile_row, kv_head, VARIANT: gl.constexpr):
    """What some rows of a task's query tile are."""
    query = tile_row // VARIANT.GROUP
    return TileRows(query, head_of(tile_row, kv_head, VARIANT), query < task.queries)
