"""When to plan a decode batch again, and with which forest."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from sglang_codec.patches.fallbacks import FALLBACKS
from sglang_codec.planning.choice import planner_for
from sglang_codec.planning.cost_model import CostModel
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.paths import RadixPaths
from sglang_codec.planning.plan import Plan, PlanCapacity, PlanCapacityError, PlanSpec


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


class BatchPlanner:
    """Keeps the current plan and replaces it when the batch is no longer the one it was made for.

    Args:
        host_rows: ``(pool_rows, lengths) -> rows' KV slots``, the slow way out when a batch without
            proven sharing does not fit the buffers.
    """

    def __init__(
        self,
        spec: PlanSpec,
        cost_model: CostModel,
        capacity: PlanCapacity,
        host_rows: Callable[[Any, np.ndarray], list[np.ndarray]],
    ) -> None:
        self.spec = spec
        self.cost_model = cost_model
        self.capacity = capacity
        self.totals = Totals()
        self.plan: Plan | None = None
        self.forest: PrefixForest | None = None
        self._host_rows = host_rows
        self._make_plan = planner_for(spec, cost_model, capacity)
        self._signature: Hashable = None
        self._lengths: np.ndarray | None = None
        # KV tokens of one step: what the current plan saves, and what the latest batch holds
        self._saved = 0
        self._held = 0

    @property
    def share_ratio(self) -> float:
        """The part of a stock backend's KV reads that the latest batch did without, 0 to 1."""
        return self._saved / self._held if self._held else 0.0

    def plan_if_changed(
        self, codec_batch: Any, lengths: np.ndarray, pool_rows: Any, *, counted: bool = True
    ) -> Plan | None:
        """The new plan if this step needs one, else None.

        Args:
            codec_batch: `CodecBatch` or None when nothing is known of the batch.
            lengths: ``[B]`` KV tokens of each row, the new one included.
            pool_rows: the rows' places in `req_to_token`, for `host_rows`.
            counted: False for a step that serves no request (graph capture, an idle rank).
        """
        lengths = np.array(lengths, np.int32)
        signature = None if codec_batch is None else codec_batch.signature
        reuse = self._serves(signature, lengths)
        if not reuse:
            # the name of this stage in a profile of the server
            with torch.profiler.record_function("codec.plan"):
                self._replan(codec_batch, lengths, pool_rows)
        self._signature, self._lengths = signature, lengths
        if counted:
            self._count(lengths, is_new=not reuse)
        return None if reuse else self.plan

    def _replan(self, codec_batch: Any, lengths: np.ndarray, pool_rows: Any) -> None:
        paths = RadixPaths.private(len(lengths)) if codec_batch is None else codec_batch.read()
        self.forest, self.plan = self._make(paths, lengths, pool_rows)
        # tails grow by as many tokens as the rows do: it stays while the plan does
        self._saved = self.plan.kv_tokens_stock - self.plan.kv_tokens_read

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
            and bool((lengths <= self.plan.max_lengths).all())
        )

    def _make(
        self, paths: RadixPaths, lengths: np.ndarray, pool_rows: Any
    ) -> tuple[PrefixForest, Plan]:
        forest = PrefixForest.from_radix_paths(paths, lengths, private_tokens=1)
        try:
            return forest, self._make_plan(forest)
        except PlanCapacityError as error:
            # rows may hold the same slots without the tree saying so; their distinct slots fit
            FALLBACKS.record("sharing found by comparing KV slots (a synchronisation)", error)
        rows = self._host_rows(pool_rows, lengths)
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        forest = PrefixForest.from_kv_indices(indptr, np.concatenate(rows))
        return forest, self._make_plan(forest)

    def _count(self, lengths: np.ndarray, *, is_new: bool) -> None:
        self._held = int(lengths.sum())
        self.totals.steps += 1
        self.totals.plans += is_new
        self.totals.kv_tokens_stock += self._held
        self.totals.kv_tokens_read += self._held - self._saved
