"""From a batch to a packed plan, by the best way that works: a step is always served."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sglang_codec.patches.fallbacks import FALLBACKS
from sglang_codec.planning.cost_model import CostModel
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.frugal import frugal_plan
from sglang_codec.planning.packed import PackedPlan, pack
from sglang_codec.planning.paths import RadixPaths
from sglang_codec.planning.plain import plain_plan
from sglang_codec.planning.plan import Plan, PlanCapacityError, PlanLayout, PlanSpec
from sglang_codec.planning.planner import Planner, make_ready


class NoPlanError(RuntimeError):
    """Every way to plan a batch failed; there is no plan that is known to be right."""


class MadePlan:
    """A plan to be sent: `packed` says what `staging` holds, int32 ``[layout.size]``.

    `lengths` are those that it was made for, int32 ``[B]``. `forest` and `plan`, which only people
    look at, are made when first asked for.
    """

    def __init__(
        self,
        staging: torch.Tensor,
        packed: PackedPlan,
        lengths: np.ndarray,
        forest: Callable[[], PrefixForest],
        plan: Callable[[PrefixForest], Plan],
    ) -> None:
        self.staging, self.packed, self.lengths = staging, packed, lengths
        self._make_forest, self._make_plan = forest, plan
        self._forest: PrefixForest | None = None
        self._plan: Plan | None = None

    @property
    def forest(self) -> PrefixForest:
        if self._forest is None:
            self._forest = self._make_forest()
        return self._forest

    @property
    def plan(self) -> Plan:
        if self._plan is None:
            self._plan = self._make_plan(self.forest)
        return self._plan


class PlanMaker:
    """Plans batches for one machine, attention shape and set of buffers.

    Args:
        layout: of the plans, with the capacities of the buffers.
        staging: makes the host memory that a plan is written to.
        host_rows: ``(pool_rows, lengths) -> rows' KV slots``, read from the device: the way out
            where nothing proves what the rows share and each on its own does not fit the KV index.
    """

    def __init__(
        self,
        spec: PlanSpec,
        cost_model: CostModel,
        layout: PlanLayout,
        staging: Callable[[], torch.Tensor],
        host_rows: Callable[[Any, np.ndarray], list[np.ndarray]],
    ) -> None:
        self.spec, self.cost_model, self.layout = spec, cost_model, layout
        self.staging, self._host_rows = staging, host_rows
        self._window, self._query_rows = spec.shape.seen_tokens, spec.shape.query_rows
        planner = Planner(spec, cost_model, layout.capacity)
        if why := make_ready():
            FALLBACKS.record("the planner is not compiled", why)
        self._pack_paths, self._plan = planner.pack_paths, planner.make_plan

    def make(self, paths: RadixPaths, lengths: np.ndarray, pool_rows: Any) -> MadePlan:
        """The plan of a batch. What a way raises is counted, and the next one is tried.

        Args:
            paths: what is proven of the rows, see `read_paths`.
            lengths: int32 ``[B]`` KV tokens of each row, the new one included.
            pool_rows: the rows' places in `req_to_token`, for `host_rows`.

        Raises:
            NoPlanError: every way failed.
        """
        failed: Exception | None = None
        for reason, way in (
            ("", self._with_all_sharing),
            ("a tree too deep for the buffers is read with less sharing", self._with_less_sharing),
            ("a batch is planned without sharing", self._without_sharing),
            ("sharing found by comparing KV slots (a synchronisation)", self._by_slots),
        ):
            # what raised anything else would raise it again
            if way == self._with_less_sharing and not isinstance(failed, PlanCapacityError):
                continue
            try:
                made = way(paths, lengths, pool_rows)
            except Exception as error:
                failed = error
                if not isinstance(error, PlanCapacityError):
                    FALLBACKS.record(f"planning failed with {type(error).__name__}", error)
                continue
            if reason:
                # what was too large, in a sentence; anything else has left its trace above
                FALLBACKS.record(reason, str(failed))
            return made
        raise NoPlanError(f"no plan for a batch of {len(lengths)} rows was possible") from failed

    def _with_all_sharing(self, paths: RadixPaths, lengths: np.ndarray, _: Any) -> MadePlan:
        staging = self.staging()
        packed = self._pack_paths(paths, lengths, self.layout, staging.numpy())
        return MadePlan(staging, packed, lengths, lambda: self._forest(paths, lengths), self._plan)

    def _with_less_sharing(self, paths: RadixPaths, lengths: np.ndarray, _: Any) -> MadePlan:
        forest = self._forest(paths, lengths)
        return self._made(forest, self._frugal(forest), lengths)

    def _without_sharing(self, _paths: RadixPaths, lengths: np.ndarray, _: Any) -> MadePlan:
        """Nothing of what the other ways use is used here."""
        return self._made(None, plain_plan(lengths, self.spec), lengths)

    def _by_slots(self, _: RadixPaths, lengths: np.ndarray, pool_rows: Any) -> MadePlan:
        """Rows may hold the same slots without a proof of it; their distinct slots always fit."""
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        slots = np.concatenate(self._host_rows(pool_rows, lengths))
        forest = PrefixForest.from_kv_indices(indptr, slots)
        forest = forest.through_window(self._window, query_rows=self._query_rows)
        try:
            plan = self._plan(forest)
        except PlanCapacityError:
            plan = self._frugal(forest)
        return self._made(forest, plan, lengths)

    def _made(self, forest: PrefixForest | None, plan: Plan, lengths: np.ndarray) -> MadePlan:
        """`forest` is None where the plan knows of no sharing."""
        staging, private = self.staging(), RadixPaths.private(len(lengths))
        packed = pack(forest, plan, self.layout, staging.numpy())

        def known() -> PrefixForest:
            return forest or self._forest(private, lengths)

        return MadePlan(staging, packed, lengths, known, lambda _: plan)

    def _forest(self, paths: RadixPaths, lengths: np.ndarray) -> PrefixForest:
        return PrefixForest.from_radix_paths(
            paths, lengths, private_tokens=self._query_rows, window=self._window
        )

    def _frugal(self, forest: PrefixForest) -> Plan:
        return frugal_plan(forest, self.spec, self.cost_model, self.layout.capacity)


def read_paths(codec_batch: Any, rows: int) -> RadixPaths:
    """What the tree proves of a batch of `rows`; of None, or of a tree that raises, nothing."""
    if codec_batch is not None:
        try:
            return codec_batch.read()
        except Exception as error:
            FALLBACKS.record(f"reading the tree failed with {type(error).__name__}", error)
    return RadixPaths.private(rows)
