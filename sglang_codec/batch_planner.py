"""When to plan a decode batch again, and what has been served."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from sglang_codec.patches.fallbacks import FALLBACKS
from sglang_codec.plan_maker import MadePlan, PlanMaker, read_paths
from sglang_codec.planning.packed import PackedPlan
from sglang_codec.planning.paths import RadixPaths
from sglang_codec.planning.plan import SPAN_INTS
from sglang_codec.profiled import profiled
from sglang_codec.row_lengths import RowLengths


class StepTimes:
    """Host seconds of the latest step's way to the device; each stage begins where one ended."""

    __slots__ = ("_ended", "clock", "make", "read", "send")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.start()

    def start(self) -> None:
        self.read = self.make = self.send = 0.0
        self._ended = self.clock()

    def end(self, stage: str) -> None:
        """`stage` is ``read``, ``make`` or ``send``."""
        now = self.clock()
        setattr(self, stage, now - self._ended)
        self._ended = now


@dataclass(slots=True)
class Totals:
    """What was served since the start; tokens are KV tokens in the mean of layers and KV heads.

    Args:
        moves: steps for which an earlier plan was sent anew, or slots of rows that had moved.
        read_seconds: comparing batches and reading the tree, in steps for which anything was sent.
            make_seconds: choosing or making what was sent. send_seconds: the copy and the launches
            that fill the KV index. slowest_seconds: the three together, of the slowest step.
    """

    steps: int = 0
    plans: int = 0
    moves: int = 0
    read_seconds: float = 0.0
    make_seconds: float = 0.0
    send_seconds: float = 0.0
    slowest_seconds: float = 0.0
    kv_tokens_read: int = 0
    kv_tokens_stock: int = 0

    @property
    def plan_seconds(self) -> float:
        return self.read_seconds + self.make_seconds + self.send_seconds

    @property
    def plans_reused(self) -> int:
        return self.steps - self.plans

    @property
    def kv_tokens_saved(self) -> int:
        return self.kv_tokens_stock - self.kv_tokens_read

    def add_times(self, times: StepTimes) -> None:
        """Those of a step for which something was sent."""
        self.read_seconds += times.read
        self.make_seconds += times.make
        self.send_seconds += times.send
        self.slowest_seconds = max(self.slowest_seconds, times.read + times.make + times.send)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"plan_seconds": self.plan_seconds}


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


@dataclass(slots=True, eq=False)
class _Live:
    """A batch's plans, one for each layer group, and the paths that they were made of.

    `saved`: KV tokens of a step that they save; it stays, because tails grow as the rows do (what
    rows share in a window shrinks, which the next plan counts). `room`: tokens by which rows may be
    longer than they were planned. `held` are those that the rows see at its latest step, of which
    they had `lengths`; of the tokens by which they grow, they see the part `seen` more.
    """

    signature: Hashable
    paths: RadixPaths
    made: tuple[MadePlan, ...]
    saved: int
    room: int
    held: int
    seen: float
    lengths: RowLengths

    def is_next_step(self, lengths: RowLengths) -> bool:
        """These may be the same rows a step later, and every tail still fits."""
        if not lengths.follow(self.lengths):
            return False
        return lengths.most_grown_since(self.made[0].lengths) <= self.room

    def serve(self, signature: Hashable, lengths: RowLengths) -> None:
        """A step of the batch: its first one, or the next."""
        if lengths is not self.lengths:
            self.held += round(self.seen * lengths.grown_since(self.lengths))
        self.signature, self.lengths = signature, lengths


class BatchPlanner:
    """Keeps the plans of the batches that are being decoded, one set per pipeline micro-batch.

    Args:
        most_live: batches that take turns; of more, the one that waited longest is forgotten.
    """

    def __init__(self, *, most_live: int = 1) -> None:
        self.makers: tuple[PlanMaker, ...] = ()
        self.totals, self.times = Totals(), StepTimes()
        self._weights: tuple[int, ...] = ()
        self.most_live = most_live
        self._live: list[_Live] = []  # the one that is on the device comes last
        self._held = 0  # KV tokens of the latest batch that was counted

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
        return self._live[-1].saved / self._held if self._held and self._live else 0.0

    @property
    def made(self) -> tuple[MadePlan, ...]:
        """The plans that are on the device, by layer group."""
        return self._live[-1].made if self._live else ()

    @property
    def first(self) -> MadePlan | None:
        """The plan of the largest layer group, which stands for all where one is shown."""
        return self.made[0] if self.made else None

    def plan_if_changed(
        self, codec_batch: Any, lengths: RowLengths, pool_rows: Any, *, counted: bool = True
    ) -> tuple[NewPlan | MovedRows, ...]:
        """What is to be sent for each group before this step; nothing if it is on the device.

        Args:
            codec_batch: `CodecBatch` or None when nothing is known of the batch.
            lengths: of the ``B`` rows.
            pool_rows: the rows' places in `req_to_token`.
            counted: False for a step that serves no request (graph capture, an idle rank).
        """
        self.times.start()
        signature = None if codec_batch is None else codec_batch.signature
        live, moved = self._live_plan(signature, lengths), []
        if live is None:
            live, moved = self._read_and_plan(codec_batch, lengths, pool_rows)
        is_new = all(live is not one for one in self._live)
        new: tuple[NewPlan | MovedRows, ...] = ()
        if is_new and lengths.are_known:
            new = tuple(NewPlan(m.staging, m.packed, m.packed.longest_span) for m in live.made)
        elif is_new or live is not self._live[-1]:
            new = tuple(
                _resent(made, lengths.most, maker.staging())
                for made, maker in zip(live.made, self.makers, strict=True)
            )
        elif moved:
            new = tuple(_moved(made, lengths.most, moved) for made in live.made)
        if is_new or live is not self._live[-1]:
            others = [other for other in self._live if other is not live]
            self._live = [*others, live][-self.most_live :]
        live.serve(signature, lengths)
        if counted:
            self._count(live, is_new=is_new, is_moved=bool(new) and not is_new)
        self.times.end("make")
        return new

    # the name of this stage in a profile of the server
    @profiled("codec.plan")
    def _read_and_plan(
        self, codec_batch: Any, lengths: RowLengths, pool_rows: Any
    ) -> tuple[_Live, list[int]]:
        """Plans that serve this batch, and the rows that have moved since they were made."""
        least = lengths.least
        paths = read_paths(codec_batch, len(least))
        self.times.end("read")
        live, moved = self._plan_of_same_paths(codec_batch, paths, lengths)
        if live is not None:
            return live, moved
        made = tuple(maker.make(paths, least, pool_rows) for maker in self.makers)
        packed = [one.packed for one in made]
        saved = self._mean([one.kv_tokens_stock - one.kv_tokens_read for one in packed])
        room = min(one.room for one in packed)
        held = self._mean([one.kv_tokens_stock for one in packed])
        windows = [maker.spec.shape.seen_tokens for maker in self.makers]
        growing = self._mean([int((least < w).sum()) if w else len(least) for w in windows])
        seen = growing / max(len(least), 1)
        return _Live(None, paths, made, saved, room, held, seen, lengths), []

    def _mean(self, tokens: Sequence[int]) -> int:
        """In the mean of layers and KV heads, from those of each group."""
        total = sum(weight * one for weight, one in zip(self._weights, tokens, strict=True))
        return total // sum(self._weights)

    def _live_plan(self, signature: Hashable, lengths: RowLengths) -> _Live | None:
        """The plan that serves this very batch, if there is one."""
        if signature is None:
            return None
        try:
            for live in reversed(self._live):
                # who is known is asked first: that takes a look where someone has joined
                if signature == live.signature and live.is_next_step(lengths):
                    return live
        except Exception as error:  # foreign objects are compared
            FALLBACKS.record(f"comparing batches failed with {type(error).__name__}", error)
        return None

    def _plan_of_same_paths(
        self, codec_batch: Any, paths: RadixPaths, lengths: RowLengths
    ) -> tuple[_Live | None, list[int]]:
        """The plan of the same rows if they share what they shared, and the rows that moved.

        A request's prompt becomes a part of the tree after its first decode step has been launched.
        Most often no other row reads that part, so there is nothing to plan again.
        """
        try:
            for live in reversed(self._live):
                if codec_batch is None or live.signature is None:
                    continue
                if paths.equals(live.paths) and live.is_next_step(lengths):
                    moved = codec_batch.moved_since(live.signature)
                    if moved is not None:
                        return live, moved
        except Exception as error:
            FALLBACKS.record(f"comparing batches failed with {type(error).__name__}", error)
        return None, []

    def _count(self, live: _Live, *, is_new: bool, is_moved: bool) -> None:
        self._held = live.held
        self.totals.steps += 1
        self.totals.plans += is_new
        self.totals.moves += is_moved
        self.totals.kv_tokens_stock += live.held
        self.totals.kv_tokens_read += live.held - live.saved


def _resent(made: MadePlan, lengths: np.ndarray, staging: torch.Tensor) -> NewPlan:
    """The plan as it was made, with the tails' spans up to where their rows end now."""
    packed, spans = made.packed, _spans(made, lengths)
    staging[: packed.used] = made.staging[: packed.used]
    staging.numpy()[packed.used - spans.size : packed.used] = spans.ravel()
    return NewPlan(staging, packed, int(spans[:, 2].max(initial=0)))


def _moved(made: MadePlan, lengths: np.ndarray, rows: list[int]) -> MovedRows:
    has_moved, spans = np.zeros(len(lengths), bool), _packed_spans(made)
    has_moved[rows] = True
    return MovedRows(_grown(spans[has_moved[spans[:, 0]]], made, lengths))


def _spans(made: MadePlan, lengths: np.ndarray) -> np.ndarray:
    """The plan's spans, the tails' up to where their rows end now; a copy."""
    return _grown(_packed_spans(made).copy(), made, lengths)


def _packed_spans(made: MadePlan) -> np.ndarray:
    """The plan's spans as it was made, where they were packed."""
    packed = made.packed
    spans = made.staging.numpy()[packed.used - packed.num_spans * SPAN_INTS : packed.used]
    return spans.reshape(-1, SPAN_INTS)


def _grown(spans: np.ndarray, made: MadePlan, lengths: np.ndarray) -> np.ndarray:
    """Brings copies of the plan's spans to date: tails end where their rows do."""
    rows = spans[:, 0]
    is_tail = spans[:, 1] + spans[:, 2] == made.lengths[rows]
    spans[:, 2] += is_tail * (lengths - made.lengths)[rows]
    return spans
