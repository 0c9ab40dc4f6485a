"""When to plan a decode batch again, and with which forest."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from sglang_codec.patches.fallbacks import FALLBACKS
from sglang_codec.planning.choice import packer_for, planner_for
from sglang_codec.planning.cost_model import CostModel
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.packed import PRIVATE_TOKENS, PackedPlan, pack
from sglang_codec.planning.paths import RadixPaths
from sglang_codec.planning.plan import Plan, PlanCapacityError, PlanLayout, PlanSpec


@dataclass(slots=True)
class Totals:
    """What was served since the start; tokens are KV tokens per layer and KV head."""

    steps: int = 0
    plans: int = 0
    plan_seconds: float = 0.0
    kv_tokens_read: int = 0
    kv_tokens_stock: int = 0

    @property
    def plans_reused(self) -> int:
        return self.steps - self.plans

    @property
    def kv_tokens_saved(self) -> int:
        return self.kv_tokens_stock - self.kv_tokens_read

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class NewPlan:
    """A plan to be sent: `packed` says what `staging` holds, ``int32 [layout.size]``."""

    staging: torch.Tensor
    packed: PackedPlan


class BatchPlanner:
    """Keeps the current plan and replaces it when the batch is no longer the one it was made for.

    Args:
        layout: of the plans, with the capacities of the buffers.
        staging: makes the host memory that a plan is written to.
        host_rows: ``(pool_rows, lengths) -> rows' KV slots``, the slow way out when a batch without
            proven sharing does not fit the buffers.
    """

    def __init__(
        self,
        spec: PlanSpec,
        cost_model: CostModel,
        layout: PlanLayout,
        staging: Callable[[], torch.Tensor],
        host_rows: Callable[[Any, np.ndarray], list[np.ndarray]],
    ) -> None:
        self.spec = spec
        self.cost_model = cost_model
        self.layout = layout
        self.totals = Totals()
        self.packed: PackedPlan | None = None
        self._staging = staging
        self._host_rows = host_rows
        self._pack_paths = packer_for(spec, cost_model, layout.capacity)
        self._make_plan = planner_for(spec, cost_model, layout.capacity)
        # what the current plan was made of, and what has been asked for since
        self._source: tuple[RadixPaths, np.ndarray] | None = None
        self._forest: PrefixForest | None = None
        self._plan: Plan | None = None
        self._signature: Hashable = None
        self._lengths: np.ndarray | None = None
        # KV tokens of one step: what the current plan saves, and what the latest batch holds
        self._saved = 0
        self._held = 0

    @property
    def share_ratio(self) -> float:
        """The part of a stock backend's KV reads that the latest batch did without, 0 to 1."""
        return self._saved / self._held if self._held else 0.0

    @property
    def forest(self) -> PrefixForest | None:
        """The forest of the current plan, made when first asked for: nothing served needs it."""
        if self._forest is None and self._source is not None:
            paths, lengths = self._source
            self._forest = PrefixForest.from_radix_paths(
                paths, lengths, private_tokens=PRIVATE_TOKENS
            )
        return self._forest

    @property
    def plan(self) -> Plan | None:
        """The current plan in all its parts, made again when first asked for."""
        if self._plan is None and self.packed is not None:
            self._plan = self._make_plan(self.forest)
        return self._plan

    def plan_if_changed(
        self, codec_batch: Any, lengths: np.ndarray, pool_rows: Any, *, counted: bool = True
    ) -> NewPlan | None:
        """The new plan if this step needs one, else None.

        Args:
            codec_batch: `CodecBatch` or None when nothing is known of the batch.
            lengths: ``[B]`` KV tokens of each row, the new one included.
            pool_rows: the rows' places in `req_to_token`, for `host_rows`.
            counted: False for a step that serves no request (graph capture, an idle rank).
        """
        lengths = np.array(lengths, np.int32)
        signature = None if codec_batch is None else codec_batch.signature
        new = None
        if not self._serves(signature, lengths):
            # the name of this stage in a profile of the server
            with torch.profiler.record_function("codec.plan"):
                new = self._replan(codec_batch, lengths, pool_rows)
        self._signature, self._lengths = signature, lengths
        if counted:
            self._count(lengths, is_new=new is not None)
        return new

    def _replan(self, codec_batch: Any, lengths: np.ndarray, pool_rows: Any) -> NewPlan:
        paths = RadixPaths.private(len(lengths)) if codec_batch is None else codec_batch.read()
        staging = self._staging()
        forest = plan = None
        try:
            packed = self._pack_paths(paths, lengths, self.layout, staging.numpy())
        except PlanCapacityError as error:
            # rows may hold the same slots without the tree saying so; their distinct slots fit
            FALLBACKS.record("sharing found by comparing KV slots (a synchronisation)", error)
            forest = self._forest_of_slots(lengths, pool_rows)
            plan = self._make_plan(forest)
            packed = pack(forest, plan, self.layout, staging.numpy())
        self.packed = packed
        self._source, self._forest, self._plan = (paths, lengths), forest, plan
        # tails grow by as many tokens as the rows do: it stays while the plan does
        self._saved = packed.kv_tokens_stock - packed.kv_tokens_read
        return NewPlan(staging, packed)

    def _serves(self, signature: Hashable, lengths: np.ndarray) -> bool:
        """The batch is the planned one, one token longer, and its tails still fit.

        One token exactly: a step that this backend did not see (a mixed chunk) has left a slot that
        no one appended to the KV index.
        """
        return (
            signature is not None
            and signature == self._signature
            and len(lengths) == len(self._lengths)
            and bool((lengths == self._lengths + 1).all())
            and bool((lengths <= self.packed.max_lengths).all())
        )

    def _forest_of_slots(self, lengths: np.ndarray, pool_rows: Any) -> PrefixForest:
        rows = self._host_rows(pool_rows, lengths)
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        return PrefixForest.from_kv_indices(indptr, np.concatenate(rows))

    def _count(self, lengths: np.ndarray, *, is_new: bool) -> None:
        self._held = int(lengths.sum())
        self.totals.steps += 1
        self.totals.plans += is_new
        self.totals.kv_tokens_stock += self._held
        self.totals.kv_tokens_read += self._held - self._saved
