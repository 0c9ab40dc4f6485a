"""When a batch is planned again, and what happens when its sharing is not proven."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sglang_codec.attention_shape import AttentionShape
from sglang_codec.batch_planner import (
    BatchPlanner,
    MovedRows,
    NewPlan,
    StepTimes,
    Totals,
)
from sglang_codec.dump import PlanDump
from sglang_codec.patches.fallbacks import FALLBACKS
from sglang_codec.plan_maker import PlanMaker
from sglang_codec.planning.cost_model import roofline_cost_model
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.paths import RadixPaths
from sglang_codec.planning.plan import PlanCapacity, PlanCapacityError, PlanLayout, PlanSpec
from sglang_codec.row_lengths import RowLengths
from sglang_codec.served_group import STEPS, tail_headroom
from sglang_codec.sharing_check import SharingMismatch, check_sharing

HEADROOM = 16
SHAPE = AttentionShape.plain(32, 8, 128)
SPEC = PlanSpec(SHAPE, (16, 64), block_kv=32, num_slots=8, tail_headroom=HEADROOM)
COST = roofline_cost_model(
    SHAPE, num_ctas=64, bandwidth=3e12, flops=7e14, task_overhead_us=2.0
)
SHARED = 100
# rows 0 and 1 share tokens 0..99, row 2 is private
PATHS = RadixPaths(*(np.array(x, np.int32) for x in ([-1], [SHARED], [0, 0, -1])))


@dataclass
class Batch:
    """A `CodecBatch` without an SGLang behind it."""

    signature: object
    paths: RadixPaths
    moved: list[int] | None = None
    reads: int = 0

    def read(self) -> RadixPaths:
        self.reads += 1
        return self.paths

    def moved_since(self, signature: object) -> list[int] | None:
        return self.moved


class Plans(BatchPlanner):
    """Is asked with lengths as numbers where the host knows them."""

    def plan_if_changed(self, batch: Any, lengths: Any, *args: Any, **more: Any) -> Any:
        if isinstance(lengths, np.ndarray):
            lengths = RowLengths.known(lengths)
        return super().plan_if_changed(batch, lengths, *args, **more)


def planner(
    kv_index: int = 4096, host_rows: Any = None, most_live: int = 1, headroom: int = HEADROOM
) -> BatchPlanner:
    spec = replace(SPEC, tail_headroom=headroom)
    layout = PlanLayout.of(PlanCapacity(8, 512, 512, kv_index), spec)
    maker = PlanMaker(spec, COST, layout, lambda: staging(layout), host_rows)
    plans = Plans(most_live=most_live)
    plans.use([maker], [8])
    return plans


def staging(layout: PlanLayout) -> torch.Tensor:
    return torch.full((layout.size,), -7, dtype=torch.int32)


def lengths(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_a_batch_that_grew_by_a_token_keeps_its_plan() -> None:
    batch, plans = Batch("a", PATHS), planner()
    (first,) = plans.plan_if_changed(batch, lengths(110, 120, 50), None)
    assert first.packed is plans.first.packed
    for step in range(1, HEADROOM + 1):
        grown = lengths(110, 120, 50) + step
        assert not plans.plan_if_changed(Batch("a", PATHS), grown, None)
    assert batch.reads == 1
    # one token more than any tail has room for
    assert plans.plan_if_changed(batch, lengths(110, 120, 50) + HEADROOM + 1, None)
    assert plans.totals.plans == 2
    assert plans.totals.steps == HEADROOM + 2


@pytest.mark.parametrize(
    ("signature", "later"),
    [
        ("b", (111, 121, 51)),  # other rows, or other tree paths
        ("a", (112, 122, 52)),  # a step that this backend did not see
        ("a", (110, 120, 50)),  # the same step again
        ("a", (111, 121)),  # a row less
        (None, (111, 121, 51)),  # nothing known of the batch
    ],
)
def test_any_other_batch_is_planned_again(signature: object, later: tuple[int, ...]) -> None:
    plans = planner()
    plans.plan_if_changed(Batch("a", PATHS), lengths(110, 120, 50), None)
    paths = RadixPaths(PATHS.parent, PATHS.end, PATHS.leaf[: len(later)])
    assert plans.plan_if_changed(Batch(signature, paths), lengths(*later), None)


@given(
    new=st.sampled_from([2, 4, 16]),
    lag=st.booleans(),
    accepted=st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), max_size=40),
)
@example(new=16, lag=True, accepted=[[1.0] * 3] * 40)
@example(new=16, lag=False, accepted=[[1.0] * 3] * 40)
@settings(max_examples=40, deadline=None)
def test_a_plan_of_drafts_covers_whatever_is_accepted(
    new: int, lag: bool, accepted: list[list[float]]
) -> None:
    """What the host may not know lies within the room of the plan, and of what is gathered."""
    plans, room = planner(headroom=tail_headroom(new)), tail_headroom(new)
    true = known = np.array([110, 120, 50], np.int32)
    steps_of_plan = []
    for step in [[0.0] * 3, *accepted]:
        least = (known if lag else true) + new
        most = least + new if lag else least
        sent = plans.plan_if_changed(Batch("a", PATHS), RowLengths(least, most, new), None)
        assert ((least <= true + new) & (true + new <= most)).all()
        planned = plans.first.lengths
        assert ((planned <= true + new) & (true + new <= planned + room)).all()
        if sent:
            steps_of_plan.append(0)
            (one,) = sent
            spans = one.staging[one.packed.used - 4 * one.packed.num_spans : one.packed.used]
            ends = spans.view(-1, 4)[:, 1] + spans.view(-1, 4)[:, 2]
            assert sorted(int(end) for end in ends if end != SHARED) == sorted(most.tolist())
        steps_of_plan[-1] += 1
        known, true = true, true + 1 + np.round(np.array(step) * (new - 1)).astype(np.int32)
    # a plan serves sixteen steps at least, all tokens accepted
    assert all(steps >= STEPS for steps in steps_of_plan[:-1])
    assert plans.totals.kv_tokens_stock > 0


@pytest.mark.parametrize("lag", [False, True])
@pytest.mark.parametrize(
    ("grown", "keeps"),
    [((1, 4, 2), True), ((5, 1, 1), False), ((0, 1, 1), None), ((-1, 1, 1), False)],
)
def test_rows_grow_by_what_was_new_at_most(
    grown: tuple[int, ...], keeps: bool | None, lag: bool
) -> None:
    """What the host does not know may have grown by nothing; what it knows, by one at least."""
    plans, least = planner(headroom=tail_headroom(4)), np.array([110, 120, 50], np.int32)
    for step, lengths_now in enumerate((least, least + np.array(grown, np.int32))):
        most = lengths_now + 4 if lag else lengths_now
        sent = plans.plan_if_changed(Batch("a", PATHS), RowLengths(lengths_now, most, 4), None)
        assert bool(sent) is (step == 0 or not (lag if keeps is None else keeps))


def test_rows_that_share_what_they_shared_keep_the_plan_and_are_gathered_again() -> None:
    plans = planner()
    plans.plan_if_changed(Batch("a", PATHS), lengths(110, 120, 50), None)
    (new,) = plans.plan_if_changed(Batch("b", PATHS, moved=[1]), lengths(111, 121, 51), None)
    assert isinstance(new, MovedRows)
    assert (plans.totals.plans, plans.totals.moves) == (1, 1)
    # row 0 stands for both in what they share: of row 1 there is its tail, the new token included
    assert [span[:3] for span in new.spans.tolist()] == [[1, SHARED, 121 - SHARED]]
    # the batch is known by its new signature
    assert not plans.plan_if_changed(Batch("b", PATHS), lengths(112, 122, 52), None)
    assert not plans.plan_if_changed(Batch("c", PATHS, moved=[]), lengths(113, 123, 53), None)


@pytest.mark.parametrize(
    ("batch", "later"),
    [
        (Batch("b", PATHS, moved=None), (111, 121, 51)),  # other rows
        (Batch("b", RadixPaths.private(3), moved=[]), (111, 121, 51)),  # less is shared
        (Batch("b", PATHS, moved=[]), (112, 122, 52)),  # a step that this backend did not see
        (Batch("b", PATHS, moved=[]), (150, 121, 51)),  # a tail without room
    ],
)
def test_rows_that_share_anything_else_are_planned_again(
    batch: Batch, later: tuple[int, ...]
) -> None:
    plans = planner()
    plans.plan_if_changed(Batch("a", PATHS), lengths(110, 120, 50), None)
    (new,) = plans.plan_if_changed(batch, lengths(*later), None)
    assert isinstance(new, NewPlan)
    assert plans.totals.plans == 2


def test_a_batch_of_which_nothing_is_known_is_private() -> None:
    plans = planner()
    for _ in range(2):
        (new,) = plans.plan_if_changed(None, lengths(110, 120, 50), None)
        plan = new.packed
        assert plan.kv_tokens_read == plan.kv_tokens_stock == 280


def test_the_time_of_a_step_is_that_of_its_stages() -> None:
    plans, ticks = planner(), itertools.count()
    plans.times = StepTimes(lambda: float(next(ticks)))
    plans.plan_if_changed(Batch("a", PATHS), lengths(110, 120, 50), None)
    plans.times.end("send")
    plans.totals.add_times(plans.times)
    slower = SimpleNamespace(read=2.0, make=0.0, send=3.0)
    plans.totals.add_times(slower)
    totals = plans.totals
    assert (totals.read_seconds, totals.make_seconds, totals.send_seconds) == (3, 1, 4)
    assert (totals.plan_seconds, totals.slowest_seconds) == (8, 5)
    assert totals.to_dict()["plan_seconds"] == 8
    # a step that sends nothing begins anew
    plans.plan_if_changed(Batch("a", PATHS), lengths(111, 121, 51), None)
    assert (plans.times.read, plans.times.make, plans.times.send) == (0, 1, 0)


def test_totals_count_what_a_step_reads() -> None:
    plans = planner()
    plans.plan_if_changed(Batch("a", PATHS), lengths(110, 120, 50), None)
    plans.plan_if_changed(Batch("a", PATHS), lengths(111, 121, 51), None)
    assert plans.totals.kv_tokens_stock == 280 + 283
    assert plans.totals.kv_tokens_read == (280 - SHARED) + (283 - SHARED)


def test_share_ratio_is_that_of_the_latest_step() -> None:
    plans = planner()
    assert plans.share_ratio == 0
    for step in range(2):
        plans.plan_if_changed(Batch("a", PATHS), lengths(110, 120, 50) + step, None)
        assert plans.share_ratio == SHARED / (280 + 3 * step)
    assert plans.totals.kv_tokens_saved == 2 * SHARED
    plans.plan_if_changed(None, lengths(110, 120, 50), None)
    assert plans.share_ratio == 0


def test_a_step_that_serves_no_one_is_planned_and_not_counted() -> None:
    plans = planner()
    (new,) = plans.plan_if_changed(None, lengths(1, 1), None, counted=False)
    assert new.packed is plans.first.packed
    assert plans.totals == Totals()
    plans.plan_if_changed(Batch("a", PATHS), lengths(110, 120, 50), None)
    assert (plans.totals.steps, plans.totals.plans, plans.totals.plans_reused) == (1, 1, 0)


def test_sharing_that_the_tree_does_not_prove_is_found_by_the_slots_when_it_must_be() -> None:
    """Read per row, two rows of 300 tokens do not fit an index of 450; their distinct slots do."""
    slots = np.arange(300, dtype=np.int32)
    rows = [slots, np.append(slots[:290], np.arange(1000, 1010, dtype=np.int32))]
    plans = planner(kv_index=450, host_rows=lambda pool_rows, lengths: rows)
    before = sum(FALLBACKS.counts.values())
    (new,) = plans.plan_if_changed(None, lengths(300, 300), None)
    assert sum(FALLBACKS.counts.values()) == before + 1
    assert new.packed.kv_tokens_read == plans.first.plan.kv_tokens_read == 290 + 10 + 10
    again = staging(plans.makers[0].layout)
    assert plans.makers[0].layout.pack(plans.first.plan, again.numpy()) == new.packed.used
    assert torch.equal(new.staging, again)
    with pytest.raises(RuntimeError, match="batch of 2 rows") as raised:
        planner(kv_index=200, host_rows=lambda *_: rows).plan_if_changed(
            None, lengths(300, 300), None
        )
    assert isinstance(raised.value.__cause__, PlanCapacityError)


def test_batches_that_take_turns_keep_their_plans() -> None:
    """The plan that comes back lists the tails up to where they end by then."""
    plans = planner(most_live=2)
    (first,) = plans.plan_if_changed(Batch("a", PATHS), lengths(110, 120, 50), None)
    other = RadixPaths.private(2)
    assert plans.plan_if_changed(Batch("b", other), lengths(30, 40), None)
    (back,) = plans.plan_if_changed(Batch("a", PATHS), lengths(111, 121, 51), None)
    assert plans.first.packed is back.packed is first.packed
    assert not plans.plan_if_changed(Batch("a", PATHS), lengths(112, 122, 52), None)
    assert plans.plan_if_changed(Batch("b", other), lengths(31, 41), None)
    assert (plans.totals.plans, plans.totals.steps) == (2, 5)
    # only the tails' spans differ, by the token that each row has got
    spans = first.packed.used - 4 * first.packed.num_spans
    assert torch.equal(back.staging[:spans], first.staging[:spans])
    before, after = (
        new.staging[spans : first.packed.used].view(-1, 4) for new in (first, back)
    )
    is_tail = before[:, 1] + before[:, 2] == torch.tensor([110, 120, 50])[before[:, 0].long()]
    assert is_tail.sum() == 3
    assert torch.equal(after[:, 2] - before[:, 2], is_tail.int())
    assert back.longest_span == int(after[:, 2].max())
    # a third batch takes the place of the one that waited longest
    plans.plan_if_changed(Batch("c", other), lengths(30, 40), None)
    assert plans.plan_if_changed(Batch("a", PATHS), lengths(113, 123, 53), None)
    assert plans.totals.plans == 4


def test_a_plan_that_is_sent_again_is_not_kept_when_a_step_was_missed() -> None:
    plans = planner(most_live=2)
    plans.plan_if_changed(Batch("a", PATHS), lengths(110, 120, 50), None)
    plans.plan_if_changed(Batch("b", RadixPaths.private(1)), lengths(30), None)
    plans.plan_if_changed(Batch("a", PATHS), lengths(112, 122, 52), None)
    assert plans.totals.plans == 3


def test_the_plan_that_is_sent_is_the_one_that_is_shown() -> None:
    plans = planner()
    assert plans.first is None
    (new,) = plans.plan_if_changed(Batch("a", PATHS), lengths(110, 120, 50), None)
    assert plans.first.forest.num_shared == new.packed.num_shared == 1
    assert plans.first.forest.depth == new.packed.depth == 2
    again = staging(plans.makers[0].layout)
    assert plans.makers[0].layout.pack(plans.first.plan, again.numpy()) == new.packed.used
    assert torch.equal(new.staging, again)


def test_the_check_finds_a_reader_with_another_slot() -> None:
    forest = PrefixForest.from_radix_paths(PATHS, lengths(110, 120, 50), private_tokens=1)
    table = torch.arange(5 * 200, dtype=torch.int32).reshape(5, 200)
    pool_rows = torch.tensor([3, 1, 4])
    table[1, :SHARED] = table[3, :SHARED]
    check_sharing(forest, table, pool_rows)
    table[1, 77] += 1
    with pytest.raises(SharingMismatch, match="token 77"):
        check_sharing(forest, table, pool_rows)


def test_the_dump_keeps_the_plan_that_saved_most(tmp_path: Path) -> None:
    file = tmp_path / "dump.json"
    plans, dump = planner(), PlanDump(str(file))
    for signature, rows in (("a", (110, 120, 50)), ("b", (30,))):
        paths = PATHS if len(rows) == 3 else RadixPaths.private(1)
        plans.plan_if_changed(Batch(signature, paths), lengths(*rows), None)
        dump.write(plans, {"some reason": 2}, changed=True)
    record = json.loads(file.read_text())
    assert record["plan"]["batch"] == 3
    assert record["totals"]["steps"] == 2
    assert record["totals"]["fallbacks"] == {"some reason": 2}
    assert PrefixForest.from_dict(record["forest"]).unique_tokens == 180
