"""When to plan a decode batch again, and what has been served."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from sglang_codec.patches.fallbacks import FALLBACKS
from sglang_codec.plan_maker import MadePlan, PlanMaker, read_paths
from sglang_codec.planning.packed import PackedPlan
from sglang_codec.planning.paths import RadixPaths
from sglang_codec.planning.plan import SPAN_INTS


@dataclass(slots=True)
class Totals:
    """What was served since the start; tokens are KV tokens in the mean of layers and KV heads."""

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
    """A plan to be sent: `packed` says what `staging` holds, ``int32 [layout.size]``.

    `longest_span` is what the KV index is filled with; it is longer than the plan's own where rows
    have grown since the plan was made.
    """

    staging: torch.Tensor
    packed: PackedPlan
    longest_span: int


@dataclass(frozen=True, slots=True)
class MovedRows:
    """The plan on the device serves on, but some rows may have got other KV slots than before.

    `spans`: what to gather again, int32 ``[S, 4]`` as the plan's own.
    """

    spans: np.ndarray


@dataclass(slots=True)
class _Live:
    """A batch's plans, one for each layer group, and the paths that they were made of.

    `lengths` are the rows' at its latest step, `max_lengths` those up to which all plans serve.
    """

    signature: Hashable
    paths: RadixPaths
    made: tuple[MadePlan, ...]
    lengths: np.ndarray
    max_lengths: np.ndarray


class BatchPlanner:
    """Keeps the plans of the batches that are being decoded, one set per pipeline micro-batch.

    Args:
        most_live: batches that take turns; of more, the one that waited longest is forgotten.
    """

    def __init__(self, *, most_live: int = 1) -> None:
        self.makers: tuple[PlanMaker, ...] = ()
        self.totals = Totals()
        self._weights: tuple[int, ...] = ()
        self.most_live = most_live
        self._live: list[_Live] = []  # the one that is on the device comes last
        # KV tokens of one step: what the current plan saves, and what the latest batch holds
        self._saved = 0
        self._held = 0

    def use(self, makers: Sequence[PlanMaker], weights: Sequence[int]) -> None:
        """Make a plan with each of `makers` for every batch from now on.

        Args:
            weights: KV heads of all layers that each one's plan serves, for the totals.
        """
        self.makers, self._weights = tuple(makers), tuple(weights)
        self._live = []

    @property
    def share_ratio(self) -> float:
        """The part of a stock backend's KV reads that the latest batch did without, 0 to 1."""
        return self._saved / self._held if self._held else 0.0

    @property
    def made(self) -> tuple[MadePlan, ...]:
        """The plans that are on the device, by layer group."""
        return self._live[-1].made if self._live else ()

    @property
    def first(self) -> MadePlan | None:
        """The plan of the largest layer group, which stands for all where one is shown."""
        return self.made[0] if self.made else None

    def plan_if_changed(
        self, codec_batch: Any, lengths: np.ndarray, pool_rows: Any, *, counted: bool = True
    ) -> tuple[NewPlan | MovedRows, ...]:
        """What is to be sent for each group before this step; nothing if it is on the device.

        Args:
            codec_batch: `CodecBatch` or None when nothing is known of the batch.
            lengths: ``[B]`` KV tokens of each row, the new one included.
            pool_rows: the rows' places in `req_to_token`.
            counted: False for a step that serves no request (graph capture, an idle rank).
        """
        lengths = np.array(lengths, np.int32)
        signature = None if codec_batch is None else codec_batch.signature
        live, moved, is_new = self._live_plan(signature, lengths), [], False
        if live is None:
            live, moved, is_new = self._read_and_plan(codec_batch, lengths, pool_rows)
        new: tuple[NewPlan | MovedRows, ...] = ()
        if is_new:
            new = tuple(NewPlan(m.staging, m.packed, m.packed.longest_span) for m in live.made)
        elif live is not self._live[-1]:
            new = tuple(
                _resent(made, lengths, maker.staging())
                for made, maker in zip(live.made, self.makers, strict=True)
            )
        elif moved:
            new = tuple(_moved(made, lengths, moved) for made in live.made)
        live.signature, live.lengths = signature, lengths
        self._make_current(live)
        if counted:
            self._count(lengths, is_new=is_new)
        return new

    # the name of this stage in a profile of the server
    @torch.profiler.record_function("codec.plan")
    def _read_and_plan(
        self, codec_batch: Any, lengths: np.ndarray, pool_rows: Any
    ) -> tuple[_Live, list[int], bool]:
        """Plans for this batch, the rows that have moved since they were made, and if just now."""
        paths = read_paths(codec_batch, len(lengths))
        if codec_batch is not None:
            live, moved = self._plan_of_same_paths(codec_batch, paths, lengths)
            if live is not None:
                return live, moved, False
        made = tuple(maker.make(paths, lengths, pool_rows) for maker in self.makers)
        limits = np.minimum.reduce([one.packed.max_lengths for one in made])
        return _Live(None, paths, made, lengths, limits), [], True

    def _live_plan(self, signature: Hashable, lengths: np.ndarray) -> _Live | None:
        """The plan that serves this very batch, if there is one."""
        try:
            for live in reversed(self._live):
                if self._serves(live, signature, lengths):
                    return live
        except Exception as error:  # foreign objects are compared
            FALLBACKS.record(f"comparing batches failed with {type(error).__name__}", error)
        return None

    def _plan_of_same_paths(
        self, codec_batch: Any, paths: RadixPaths, lengths: np.ndarray
    ) -> tuple[_Live | None, list[int]]:
        """The plan of the same rows if they share what they shared, and the rows that moved.

        A request's prompt becomes a part of the tree after its first decode step has been launched.
        Most often no other row reads that part, so there is nothing to plan again.
        """
        try:
            for live in reversed(self._live):
                if live.signature is None or not self._is_next_step(live, lengths):
                    continue
                if _same(paths, live.paths):
                    moved = codec_batch.moved_since(live.signature)
                    if moved is not None:
                        return live, moved
        except Exception as error:
            FALLBACKS.record(f"comparing batches failed with {type(error).__name__}", error)
        return None, []

    def _serves(self, live: _Live, signature: Hashable, lengths: np.ndarray) -> bool:
        """The batch is the planned one."""
        return (
            signature is not None
            and signature == live.signature
            and self._is_next_step(live, lengths)
        )

    @staticmethod
    def _is_next_step(live: _Live, lengths: np.ndarray) -> bool:
        """Every row is one token longer, and its tail still fits.

        One token exactly: a step that this backend did not see (a mixed batch that the prefill
        backend attended whole) has left a slot that no one appended to the KV index.
        """
        return (
            len(lengths) == len(live.lengths)
            and bool((lengths == live.lengths + 1).all())
            and bool((lengths <= live.max_lengths).all())
        )

    def _make_current(self, live: _Live) -> None:
        others = [other for other in self._live if other is not live]
        self._live = [*others, live][-self.most_live :]
        # tails grow by as many tokens as the rows do: it stays while the plans do
        saved = [made.packed.kv_tokens_stock - made.packed.kv_tokens_read for made in live.made]
        weighted = sum(w * tokens for w, tokens in zip(self._weights, saved, strict=True))
        self._saved = weighted // sum(self._weights)

    def _count(self, lengths: np.ndarray, *, is_new: bool) -> None:
        self._held = int(lengths.sum())
        self.totals.steps += 1
        self.totals.plans += is_new
        self.totals.kv_tokens_stock += self._held
        self.totals.kv_tokens_read += self._held - self._saved


def _same(paths: RadixPaths, others: RadixPaths) -> bool:
    """Whether these are the same arrays; equal sharing may look different, never the reverse."""
    return all(
        np.array_equal(getattr(paths, name), getattr(others, name))
        for name in ("parent", "end", "leaf")
    )


def _resent(made: MadePlan, lengths: np.ndarray, staging: torch.Tensor) -> NewPlan:
    """The plan as it was made, with the tails' spans up to where their rows end now."""
    packed, spans = made.packed, _spans(made, lengths)
    staging[: packed.used] = made.staging[: packed.used]
    staging.numpy()[packed.used - spans.size : packed.used] = spans.ravel()
    return NewPlan(staging, packed, int(spans[:, 2].max(initial=0)))


def _moved(made: MadePlan, lengths: np.ndarray, rows: list[int]) -> MovedRows:
    spans = _spans(made, lengths)
    return MovedRows(spans[np.isin(spans[:, 0], rows)])


def _spans(made: MadePlan, lengths: np.ndarray) -> np.ndarray:
    """The plan's spans, the tails' up to where their rows end now; a copy."""
    packed = made.packed
    spans = made.staging.numpy()[packed.used - packed.num_spans * SPAN_INTS : packed.used]
    spans = spans.reshape(-1, SPAN_INTS).copy()
    rows = spans[:, 0]
    is_tail = spans[:, 1] + spans[:, 2] == made.lengths[rows]
    spans[:, 2] += np.where(is_tail, (lengths - made.lengths)[rows], 0)
    return spans
