"""The best candidate -> the arrays of a `Plan`, in the order in which the kernels read them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sglang_codec.planning.compiled import compiled
from sglang_codec.planning.machine import aligned
from sglang_codec.planning.reading import Reading
from sglang_codec.planning.schedules import Schedule
from sglang_codec.planning.structure import Forest
from sglang_codec.planning.tables import KERNEL_TASK, NOTE, ints, view

_BEHIND_ALL = 2**40  # tokens


class Assembled(NamedTuple):
    """What a `Plan` consists of besides its forest and its reading, see there.

    Args:
        tasks, notes: tables of `KERNEL_TASK` and `NOTE`. pieces: int64 ``[4 * P]``.
        slot_indptr: int64 ``[classes * (slots + 1)]``.
    """

    tasks: np.ndarray
    notes: np.ndarray
    slot_indptr: np.ndarray
    part_indptr: np.ndarray
    part_rows: np.ndarray


@compiled
def assemble(forest: Forest, reading: Reading, schedule: Schedule, machine: np.record) -> Assembled:
    """Sort the tasks and write down everything that the device is told."""
    items, found = schedule.items, schedule.tasks
    headroom, reserved, entry = machine.headroom, 0, 0
    order, slot_indptr = _kernel_order(items, found, machine)
    tasks, notes = view(ints(8 * len(found)), KERNEL_TASK), view(ints(4 * len(found)), NOTE)
    for i in range(len(found)):
        task, out, note = found[order[i]], tasks[i], notes[i]
        out.kv_len = task.tokens
        out.first = task.first
        out.queries = task.queries
        out.part = out.open_row = note.node = -1
        if task.needs_part:
            out.part = reserved
            reserved += task.queries
        note.slot = task.slot
        note.us = task.us
        if task.source < 0:
            bundle, tails = reading.bundles[-1 - task.source], 0
            for p in range(bundle.begin, bundle.end):
                tails += reading.pieces[p].is_tail
            out.kv_start = entry
            out.open_base = bundle.begin
            out.most = bundle.end - bundle.begin
            entry += aligned(task.tokens + tails * headroom)
            continue
        run = reading.runs[items[task.source].run]
        out.kv_start = run.offset + task.begin
        out.open_base = note.start = run.start + task.begin
        out.most = task.tokens
        note.node = run.node
        # the last chunk of a tail is open: its length follows the row's own
        is_last = task.begin + task.tokens == run.length
        if run.is_tail and (machine.query_rows > 1 or (headroom > 0 and is_last)):
            out.open_row = forest.order[task.first]
            out.most = task.tokens + headroom * is_last
    part_indptr, part_rows = _part_lists(forest, schedule, tasks, order)
    return Assembled(tasks, notes, slot_indptr, part_indptr, part_rows)


@compiled
def _kernel_order(
    items: np.ndarray, tasks: np.ndarray, machine: np.record
) -> tuple[np.ndarray, np.ndarray]:
    """Tasks by class, then slot, then longest first; and `Plan.slot_indptr`."""
    slots, tiles, count = machine.num_slots, machine.num_tiles, len(tasks)
    classes = tiles + (machine.bundle_rows > 0)
    begin, cell = ints(classes * slots + 1), ints(count)
    for t in range(count):
        item = tasks[t].source
        cell[t] = (tiles if item < 0 else items[item].tile) * slots + tasks[t].slot
        begin[cell[t] + 1] += 1
    for c in range(classes * slots):
        begin[c + 1] += begin[c]
    order, slot_indptr = ints(count), ints(classes * (slots + 1))
    for c in range(classes):
        for s in range(slots + 1):
            slot_indptr[c * (slots + 1) + s] = begin[c * slots + s]
    filled = ints(classes * slots)
    for t in range(count):
        c = cell[t]
        at = begin[c] + filled[c]
        filled[c] += 1
        while at > begin[c] and tasks[order[at - 1]].us < tasks[t].us:
            order[at] = order[at - 1]
            at -= 1
        order[at] = t
    return order, slot_indptr


@compiled
def _part_lists(
    forest: Forest, schedule: Schedule, placed: np.ndarray, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Per batch row its partial rows in token order, a bundle's last; -1 for a direct result."""
    tasks, items, batch = schedule.tasks, schedule.items, len(forest.order)
    part_of, indptr = ints(len(tasks)), ints(batch + 1)
    for i in range(len(tasks)):
        part_of[order[i]] = placed[i].part
        for position in range(placed[i].first, placed[i].first + placed[i].queries):
            indptr[forest.order[position] + 1] += 1
    for row in range(batch):
        indptr[row + 1] += indptr[row]
    rows, starts, filled = ints(indptr[batch]), ints(indptr[batch]), ints(batch)
    for t in range(len(tasks)):
        task, start = tasks[t], _BEHIND_ALL
        if task.source >= 0:
            start = items[task.source].start + task.begin
        for q in range(task.queries):
            row = forest.order[task.first + q]
            at = indptr[row] + filled[row]
            filled[row] += 1
            while at > indptr[row] and starts[at - 1] > start:
                starts[at] = starts[at - 1]
                rows[at] = rows[at - 1]
                at -= 1
            starts[at] = start
            rows[at] = -1 if part_of[t] < 0 else part_of[t] + q
    return indptr, rows
