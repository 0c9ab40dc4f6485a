"""The sections of a packed plan, found as the kernels find them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_codec.planning.packed import PackedPlan
from sglang_codec.planning.plan import (
    MERGE_INTS,
    MOST_PIECES,
    PIECE_FIELDS,
    SLOT_INTS,
    SPAN_INTS,
    TASK_FIELDS,
    PlanLayout,
)


def require(good: Any, says: str, *values: Any) -> None:
    """AssertionError for the first place that is not `good`; `says` formats the values there."""
    good = np.atleast_1d(good)
    if not good.all():
        at = int(np.argmin(good))
        there = [np.broadcast_to(value, good.shape)[at].item() for value in values]
        raise AssertionError(says.format(*there))


@dataclass(frozen=True, slots=True)
class PackedView:
    """What a packed plan says; every array is a view of it, so that a test can break it.

    Args:
        bounds: ``[slots, classes, 2]``, first and last task of each slot and class.
        order: ``[B]``. merges: ``[listed, 4]``. append_base: ``[capacity.rows]``.
        tasks: ``[T, 8]``, of which the last are `bundles` ``[N, 8]`` and the others `chunks`.
        pieces: ``[P, 4]``, those of bundle ``b`` from number ``piece_begin[b]`` on.
        packed: the whole array; the part lists lie at ``[lists_begin, lists_end)``.
        spans: ``[S, 4]``.
    """

    bounds: np.ndarray
    order: np.ndarray
    merges: np.ndarray
    append_base: np.ndarray
    tasks: np.ndarray
    chunks: np.ndarray
    bundles: np.ndarray
    pieces: np.ndarray
    piece_begin: np.ndarray
    packed: np.ndarray
    lists_begin: int
    lists_end: int
    spans: np.ndarray

    @classmethod
    def of(cls, packed: np.ndarray, layout: PlanLayout, made: PackedPlan) -> PackedView:
        """Read the sections; AssertionError where they do not lie within `packed`."""
        capacity, used = layout.capacity, made.used
        assert used <= layout.size, f"{used} elements in use, the layout has {layout.size}"
        bounds = packed[: layout.order].reshape(layout.num_slots, SLOT_INTS)
        bounds = bounds[:, : 2 * layout.num_classes].reshape(layout.num_slots, -1, 2)
        merges = packed[layout.merges : layout.append_base].reshape(-1, MERGE_INTS)
        listed, batch = merges[0, :2].tolist()
        assert 0 <= batch <= capacity.rows, f"{batch} rows, the buffers hold {capacity.rows}"
        assert 0 <= listed <= batch, f"{listed} merges of {batch} rows"

        num_chunks, num_tasks = (int(packed[at]) for at in layout.task_counts)
        assert 0 <= num_chunks <= num_tasks, f"{num_chunks} of {num_tasks} tasks are chunks"
        assert num_tasks <= capacity.tasks, f"{num_tasks} tasks, the buffers hold {capacity.tasks}"
        pieces_at = layout.tasks + num_tasks * len(TASK_FIELDS)
        spans_at = used - made.num_spans * SPAN_INTS
        assert pieces_at <= spans_at, f"the spans begin at {spans_at}, the tasks end at {pieces_at}"
        tasks = packed[layout.tasks : pieces_at].reshape(-1, len(TASK_FIELDS))

        bundles = tasks[num_chunks:]
        count = bundles[:, 7].astype(np.int64)
        require(count <= MOST_PIECES, "a bundle of {} pieces, at most {}", count, MOST_PIECES)
        require(count >= 1, "a bundle of {} pieces", count)
        begin = (bundles[:, 6].astype(np.int64) - pieces_at) / len(PIECE_FIELDS)
        lists_at = pieces_at + int(count.sum()) * len(PIECE_FIELDS)
        assert lists_at <= spans_at, f"the spans begin at {spans_at}, the pieces end at {lists_at}"
        in_order = np.argsort(begin)
        wanted = np.empty(len(count))
        wanted[in_order] = np.cumsum(count[in_order]) - count[in_order]
        require(begin == wanted, "a bundle's pieces begin at number {}, not {}", begin, wanted)
        return cls(
            bounds=bounds,
            order=packed[layout.order : layout.order + batch],
            merges=merges[1 : listed + 1],
            append_base=packed[layout.append_base : layout.append_base + capacity.rows],
            tasks=tasks,
            chunks=tasks[:num_chunks],
            bundles=bundles,
            pieces=packed[pieces_at:lists_at].reshape(-1, len(PIECE_FIELDS)),
            piece_begin=wanted.astype(np.int64),
            packed=packed,
            lists_begin=lists_at,
            lists_end=spans_at,
            spans=packed[spans_at:used].reshape(-1, SPAN_INTS),
        )

    def equals(self, other: PackedView) -> bool:
        """Whether the device makes the same of both."""
        mine, theirs = (
            (
                *(view.bounds, view.order, view.merges, view.append_base, view.tasks, view.pieces),
                *(view.packed[view.lists_begin : view.lists_end], view.spans),
            )
            for view in (self, other)
        )
        return all(map(np.array_equal, mine, theirs))
