"""The planner in C: built once, as good as the one in Python, and done without where it must be."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_codec.planning import native
from sglang_codec.planning.choice import planner_for
from sglang_codec.planning.cost_model import COST_TABLES, CostModel
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.plan import Plan, PlanCapacity, PlanSpec
from sglang_codec.planning.planner import make_plan
from sglang_codec.testing import random_counts, with_slots

UNLIMITED = PlanCapacity(1 << 30, 1 << 30, 1 << 30, 1 << 30)
SPEC = PlanSpec(4, 128, 2, (16, 64, 128), 32, 33, tail_headroom=128, bundle_rows=64)
TABLE = COST_TABLES / "nvidia_h100_80gb_hbm3_d128.json"
COST = CostModel.from_json(TABLE, SPEC.group)


def forest_of(seed: int, batch: int, nodes: int, longest: int) -> PrefixForest:
    counts = random_counts(
        seed, batch=batch, nodes=nodes, longest_run=longest, longest_tail=longest
    )
    return PrefixForest.from_paths(with_slots(counts))


@pytest.fixture
def no_library() -> Iterator[None]:
    """A process that has not looked for the library yet, and forgets what it finds."""
    native._loaded.cache_clear()
    yield
    native._loaded.cache_clear()


def merge_us(plan: Plan) -> float:
    """What ours may take longer to have no partials: 2.4 times their bytes' time, see planner.c."""
    _, token_us = COST.line(SPEC.row_tiles[0])
    as_tokens = 2 * plan.num_parts * SPEC.partial_bytes / SPEC.kv_token_bytes
    return 2.4 * as_tokens * token_us / SPEC.num_slots


@given(st.integers(0, 1 << 30), st.integers(1, 120), st.integers(0, 40), st.integers(1, 3000))
def test_its_plans_are_predicted_to_be_as_fast(
    seed: int, batch: int, nodes: int, longest: int
) -> None:
    forest = forest_of(seed, batch, nodes, longest)
    ours = native.NativePlanner(SPEC, COST, UNLIMITED).make_plan(forest)
    python = make_plan(forest, SPEC, COST, UNLIMITED)
    # either may be lucky: they try different schedules until one is balanced. And ours makes rather
    # small bundles than idle slots, which can cost a slot the start of one task more
    start_us, _ = COST.line(SPEC.bundle_rows)
    assert ours.makespan_us <= 1.15 * python.makespan_us + start_us + merge_us(python)
    assert ours.spans.dtype == python.spans.dtype == ours.tasks.dtype == np.int32


def test_equal_batches_get_equal_plans() -> None:
    forest = forest_of(5, 300, 40, 500)
    planner = native.NativePlanner(SPEC, COST, UNLIMITED)
    assert planner.make_plan(forest).to_dict() == planner.make_plan(forest).to_dict()


def shared_and_private(batch: int, shared: int, private: int) -> PrefixForest:
    rows = [[("shared", shared), (f"private {row}", private)] for row in range(batch)]
    return PrefixForest.from_paths(with_slots(rows))


def test_partials_are_dearer_where_the_l2_does_not_keep_them() -> None:
    forest = shared_and_private(512, 1024, 32)
    spec = dataclasses.replace(SPEC, row_tiles=(64, 128), num_slots=16, tail_headroom=0)
    plans = {
        l2_tokens: native.NativePlanner(
            dataclasses.replace(spec, l2_tokens=l2_tokens), COST, UNLIMITED
        ).make_plan(forest)
        for l2_tokens in (0.0, 1e9)
    }
    assert plans[0.0].num_parts < plans[1e9].num_parts
    assert plans[0.0].makespan_us >= plans[1e9].makespan_us


def test_a_plan_outlives_the_planner() -> None:
    forest = forest_of(6, 50, 9, 400)
    plan = native.NativePlanner(SPEC, COST, UNLIMITED).make_plan(forest)
    before = plan.to_dict()
    for seed in range(20):
        native.NativePlanner(SPEC, COST, UNLIMITED).make_plan(forest_of(seed, 50, 9, 400))
    assert plan.to_dict() == before


def test_forests_of_another_integer_type_are_planned_too() -> None:
    forest = forest_of(7, 30, 5, 300)
    arrays = {name: getattr(forest, name) for name in ("parent", "start", "first", "order")}
    wide = dataclasses.replace(forest, **{k: v.astype(np.int64) for k, v in arrays.items()})
    planner = native.NativePlanner(SPEC, COST, UNLIMITED)
    assert planner.make_plan(wide).to_dict() == planner.make_plan(forest).to_dict()


@pytest.mark.usefixtures("no_library")
def test_it_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = native.build()
    assert built.is_relative_to(tmp_path)
    monkeypatch.setenv("CC", "false")  # a second build would fail
    assert native.build() == built
    assert [built] == list(built.parent.iterdir()), "something was left behind"


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize(
    ("compiler", "message"),
    [("false", "false -O2 .* failed"), ("/no/such/cc", "cannot run /no/such/cc")],
)
def test_without_a_compiler_python_plans(
    compiler: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", compiler)
    forest = forest_of(8, 40, 7, 300)
    with caplog.at_level(logging.WARNING):
        plan = planner_for(SPEC, COST, UNLIMITED)(forest)
        planner_for(SPEC, COST, UNLIMITED)
    assert plan.to_dict() == make_plan(forest, SPEC, COST, UNLIMITED).to_dict()
    (record,) = caplog.records
    assert "plans in Python, more slowly" in record.getMessage()
    assert "$CC" in record.getMessage()
    with pytest.raises(RuntimeError, match=message):
        native.build()
    assert list(tmp_path.glob("**/*.so")) == []
