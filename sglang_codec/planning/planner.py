"""The planner: radix paths or a forest -> a plan, by stages that are compiled when one is made."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from sglang_codec.planning.border import check_output, checked_paths
from sglang_codec.planning.cost_model import CostModel
from sglang_codec.planning.entries import REPORT, pack_paths, plan_arrays
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.inputs import Cut, forest_arrays, machine_table
from sglang_codec.planning.packed import PRIVATE_TOKENS, PackedPlan
from sglang_codec.planning.paths import RadixPaths
from sglang_codec.planning.plan import (
    PIECE_FIELDS,
    SPAN_INTS,
    TASK_FIELDS,
    Plan,
    PlanCapacity,
    PlanCapacityError,
    PlanLayout,
    PlanSpec,
)
from sglang_codec.planning.schedules import (
    TOO_LONG_BUNDLES,
    TOO_LONG_INDEX,
    TOO_MANY_PARTS,
    TOO_MANY_TASKS,
)
from sglang_codec.planning.tables import RUN, SPAN

logger = logging.getLogger(__name__)

_TOO_LARGE = {
    TOO_LONG_INDEX: "kv_index",
    TOO_LONG_BUNDLES: "bundle_index",
    TOO_MANY_TASKS: "tasks",
    TOO_MANY_PARTS: "parts",
}


@dataclass(frozen=True, slots=True)
class GivenRuns:
    """A reading without bundles, made elsewhere.

    Args:
        runs, spans: tables of `RUN` and `SPAN`. append_base: int64 ``[B]`` by row, as of `Plan`.
        kv_entries: of the KV index. absorbed: bool ``[num_shared]``.
    """

    runs: np.ndarray
    spans: np.ndarray
    append_base: np.ndarray
    kv_entries: int
    absorbed: np.ndarray


class Planner:
    """Plans batches for one machine, attention shape and set of buffers.

    Making one compiles the stages, unless this process or the cache has them compiled.

    Raises:
        ValueError: more query tiles or points of the cost model than are planned for.
    """

    def __init__(
        self,
        spec: PlanSpec,
        cost_model: CostModel,
        capacity: PlanCapacity,
        cut: Cut | None = None,
    ) -> None:
        make_ready()
        self.spec, self.capacity = spec, capacity
        self._machine = machine_table(spec, cost_model, capacity, cut)
        self._layout: tuple[PlanLayout | None, np.ndarray] = (None, np.zeros(0, np.int64))

    def make_plan(self, forest: PrefixForest, given: GivenRuns | None = None) -> Plan:
        """Plan one batch.

        Args:
            given: what is read for whom, in place of what the planner finds best.

        Raises:
            PlanCapacityError: even the coarsest plan does not fit the capacity.
            ValueError: the arrays of `forest` are no forest.
        """
        forest = forest.checked()
        self.capacity.check(rows=forest.batch)
        if given is None:
            no, base = np.zeros(0, np.int64), np.zeros(0, np.int64)
            reading = no.view(RUN), no.view(SPAN), base, -1
        else:
            reading = given.runs, given.spans, given.append_base, given.kv_entries
        report = np.zeros(REPORT, np.int64)
        ints, us = plan_arrays(*forest_arrays(forest), *reading, self._machine, report)
        if report[2] < 0:
            self._refuse(report)
        return _plan(forest, self.spec, ints, us, report, given)

    def pack_paths(
        self, paths: RadixPaths, lengths: np.ndarray, layout: PlanLayout, out: np.ndarray
    ) -> PackedPlan:
        """`make_plan` and `PlanLayout.pack` of the paths' forest, in one call.

        A server has other things in its caches when a batch changes: one call takes a fraction of
        what its stages take one by one.

        Args:
            lengths: int32 ``[B]`` KV tokens of each row, of which the last one is private.
            out: int32 ``[layout.size]``.

        Raises:
            PlanCapacityError: as `make_plan` does.
            ValueError: the paths are no tree, `lengths` are not those of their rows, the layout is
                one of other plans, or `out` cannot take it.
        """
        arrays = checked_paths(paths.parent, paths.end, paths.leaf, lengths)
        batch = len(arrays[-1])
        self.capacity.check(rows=batch)
        if layout is not self._layout[0]:
            self._layout = layout, self._places(layout)
        check_output(out, layout.size)
        max_lengths, report = np.empty(batch, np.int32), np.empty(REPORT, np.int64)
        if not pack_paths(
            *arrays, PRIVATE_TOKENS, self._machine, self._layout[1], out, max_lengths, report
        ):
            self._refuse(report)
        used, num_spans, longest, read, num_shared, depth = report[2:8].tolist()
        stock = int(arrays[-1].sum())
        return PackedPlan(used, num_spans, longest, read, stock, max_lengths, num_shared, depth)

    def _places(self, layout: PlanLayout) -> np.ndarray:
        if layout.capacity != self.capacity:
            raise ValueError(
                f"the layout is for plans of {layout.capacity}, the planner for {self.capacity}; "
                "make both with one capacity"
            )
        layout.check(self.spec.num_classes, self.spec.num_slots)
        places = (layout.order, layout.merges, layout.append_base, layout.tasks, layout.size)
        return np.array([layout.capacity.rows, *places], np.int64)

    def _refuse(self, report: np.ndarray) -> NoReturn:
        why, need = report[:2].tolist()
        if size := _TOO_LARGE.get(why):
            self.capacity.check(**{size: need})
        raise PlanCapacityError(f"no plan fits {self.capacity}")


def make_plan(
    forest: PrefixForest,
    spec: PlanSpec,
    cost_model: CostModel,
    capacity: PlanCapacity,
    cut: Cut | None = None,
) -> Plan:
    """`Planner.make_plan`, for one batch only."""
    return Planner(spec, cost_model, capacity, cut).make_plan(forest)


_LOCK = threading.Lock()
_IS_READY = False


def make_ready() -> None:
    """Compile the planner once in this process. Where that fails it works uncompiled, slowly."""
    global _IS_READY
    with _LOCK:
        if _IS_READY:
            return
        _IS_READY = True
        try:
            from sglang_codec.planning.jit import compile_entries

            compile_entries()
        except Exception as error:
            logger.warning(
                "codec could not compile its planner and plans slowly: %s: %s. Install the numba "
                "that SGLang pins.",
                type(error).__name__,
                error,
            )


def _plan(
    forest: PrefixForest,
    spec: PlanSpec,
    ints: np.ndarray,
    us: np.ndarray,
    report: np.ndarray,
    given: GivenRuns | None,
) -> Plan:
    """A plan whose arrays are parts of `ints`, in the order of `entries.plan_arrays`."""
    tasks, _, pieces, listed, spans, parts, kv_entries, bundle_entries = report[2:].tolist()
    batch, done = forest.batch, 0

    def part(*shape: int) -> np.ndarray:
        nonlocal done
        begin, done = done, done + int(np.prod(shape))
        return ints[begin:done].reshape(shape)

    return Plan(
        order=forest.order,
        tasks=part(tasks, len(TASK_FIELDS)),
        pieces=part(pieces, len(PIECE_FIELDS)),
        slot_indptr=part(spec.num_classes, spec.num_slots + 1),
        part_indptr=part(batch + 1),
        part_rows=part(listed),
        append_base=part(batch),
        max_lengths=part(batch),
        spans=part(spans, SPAN_INTS),
        node=part(tasks),
        start=part(tasks),
        slot=part(tasks),
        piece_node=part(pieces),
        piece_start=part(pieces),
        absorbed=given.absorbed if given else part(forest.num_shared).astype(bool),
        num_parts=parts,
        kv_entries=kv_entries,
        bundle_entries=bundle_entries,
        us=us,
        row_tiles=spec.row_tiles,
        lengths=forest.lengths,
    )
