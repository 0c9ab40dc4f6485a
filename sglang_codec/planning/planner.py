"""The planner: radix paths or a forest -> a plan, by stages that are compiled when one is made."""

from __future__ import annotations

import functools
import logging
import math
import threading
from dataclasses import dataclass

import numpy as np

from sglang_codec.planning.border import check_output, path_arrays, refuse_paths
from sglang_codec.planning.cost_model import CostModel
from sglang_codec.planning.entries import REFUSED, REPORT, plan
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.inputs import Cut, forest_arrays, machine_table
from sglang_codec.planning.packed import PackedPlan
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
        runs, spans: tables of `RUN` and `SPAN` as int64.
        append_base: int64 ``[B]`` by row, as of `Plan`. kv_entries: of the KV index.
        absorbed: bool ``[num_shared]``.
    """

    runs: np.ndarray
    spans: np.ndarray
    append_base: np.ndarray
    kv_entries: int
    absorbed: np.ndarray


_NONE = np.zeros(0, np.int64)
_NOTHING_GIVEN = GivenRuns(_NONE, _NONE, _NONE, -1, np.zeros(0, bool))
_NO_PLACES = _NONE
_NO_PATHS = (np.zeros(0, np.int32),) * 3
_PACKED = slice(REPORT.index("used"), REPORT.index("depth") + 1)


class _NotTaken(Exception):
    """The arrays are not what they have to be."""


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
        given = given or _NOTHING_GIVEN
        max_lengths = np.empty(forest.batch, np.int32)
        out = max_lengths  # is not written
        ints, us, numbers = self._planned(
            (*_NO_PATHS, forest.lengths, *forest_arrays(forest)),
            given,
            _NO_PLACES,
            out,
            max_lengths,
        )
        report = dict(zip(REPORT, numbers, strict=True))
        return _plan(forest, self.spec, ints, us, max_lengths, report, given)

    def pack_paths(
        self, paths: RadixPaths, lengths: np.ndarray, layout: PlanLayout, out: np.ndarray
    ) -> PackedPlan:
        """`make_plan` and `PlanLayout.pack` of the paths' forest, in one call.

        A server has other things in its caches when a batch changes: one call takes a fraction of
        what its stages take one by one.

        Args:
            lengths: int32 ``[B]`` KV tokens of each row, of which the last ones, one for each of
                its query rows, are private.
            out: int32 ``[layout.size]``.

        Raises:
            PlanCapacityError: as `make_plan` does.
            ValueError: the paths are no tree, `lengths` are not those of their rows, the layout is
                one of other plans, or `out` cannot take it.
        """
        if layout is not self._layout[0]:
            self._layout = layout, self._places(layout)
        arrays = paths.parent, paths.end, paths.leaf, lengths
        try:
            return self._packed(arrays, out)
        except (TypeError, _NotTaken):
            # looked at only where it is needed: what is compiled takes nothing else
            check_output(out, layout.size)
            arrays = path_arrays(*arrays)
        try:
            return self._packed(arrays, out)
        except _NotTaken:
            refuse_paths(*arrays)

    def _packed(self, arrays: tuple[np.ndarray, ...], out: np.ndarray) -> PackedPlan:
        """The plan of the paths and lengths in `arrays`; refuses any that are not as they must."""
        batch = len(arrays[-1])
        if batch > self.capacity.rows:
            self.capacity.check(rows=batch)
        max_lengths = np.empty(batch, np.int32)
        batch_arrays = (*arrays, _NONE, _NONE)
        _, _, report = self._planned(
            batch_arrays, _NOTHING_GIVEN, self._layout[1], out, max_lengths
        )
        return PackedPlan(*report[_PACKED], max_lengths)

    def _planned(
        self,
        batch: tuple[np.ndarray, ...],
        given: GivenRuns,
        places: np.ndarray,
        out: np.ndarray,
        max_lengths: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """What `entries.plan` returns, and its report; `batch` are its first arguments."""
        report = np.empty(len(REPORT), np.int64)
        found, ints, us = plan(
            *batch,
            given.runs,
            given.spans,
            given.append_base,
            given.kv_entries,
            self._machine,
            places,
            out,
            max_lengths,
            report,
        )
        numbers = report.tolist()
        if not found:
            why, need = numbers[:2]
            if why == REFUSED:
                raise _NotTaken
            if size := _TOO_LARGE.get(why):
                self.capacity.check(**{size: need})
            raise PlanCapacityError(f"no plan fits {self.capacity}")
        return ints, us, numbers

    def _places(self, layout: PlanLayout) -> np.ndarray:
        if layout.capacity != self.capacity:
            raise ValueError(
                f"the layout is for plans of {layout.capacity}, the planner for {self.capacity}; "
                "make both with one capacity"
            )
        layout.check(self.spec.num_classes, self.spec.num_slots)
        places = (layout.order, layout.merges, layout.append_base, layout.tasks, layout.size)
        return np.array([layout.capacity.rows, *places], np.int64)


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


def make_ready() -> str:
    """Compile the planner once in this process; empty, or why it works uncompiled, and slowly."""
    with _LOCK:
        return _make_ready()


@functools.cache
def _make_ready() -> str:
    try:
        from sglang_codec.planning.jit import compile_entries

        compile_entries()
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        logger.warning(
            "codec could not compile its planner and plans slowly: %s. Install the numba that "
            "SGLang pins",
            why,
        )
        return why
    return ""


def _plan(
    forest: PrefixForest,
    spec: PlanSpec,
    ints: np.ndarray,
    us: np.ndarray,
    max_lengths: np.ndarray,
    report: dict[str, int],
    given: GivenRuns,
) -> Plan:
    """A plan whose arrays are parts of `ints`, in the order of `entries.plan`."""
    tasks, pieces, batch, done = report["num_tasks"], report["num_pieces"], forest.batch, 0

    def part(*shape: int) -> np.ndarray:
        nonlocal done
        begin, done = done, done + math.prod(shape)
        return ints[begin:done].reshape(shape)

    return Plan(
        order=forest.order,
        tasks=part(tasks, len(TASK_FIELDS)),
        pieces=part(pieces, len(PIECE_FIELDS)),
        slot_indptr=part(spec.num_classes, spec.num_slots + 1),
        part_indptr=part(batch + 1),
        part_rows=part(report["num_listed"]),
        append_base=part(batch),
        max_lengths=max_lengths,
        spans=part(report["num_spans"], SPAN_INTS),
        node=part(tasks),
        start=part(tasks),
        slot=part(tasks),
        piece_node=part(pieces),
        piece_start=part(pieces),
        absorbed=given.absorbed if given.kv_entries >= 0 else part(forest.num_shared).astype(bool),
        num_parts=report["num_parts"],
        kv_entries=report["kv_entries"],
        bundle_entries=report["bundle_entries"],
        us=us,
        row_tiles=spec.row_tiles,
        lengths=forest.lengths,
        window=spec.shape.seen_tokens,
    )
