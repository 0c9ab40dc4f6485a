"""The planner: equal plans for equal batches, what partials cost, options, and what it refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from plan_checker import check_plan
from plan_specs import SHAPE
from token_rows import TokenRows

from sglang_codec.planning.cost_model import COST_TABLES, CostModel, roofline_cost_model
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.inputs import Cut
from sglang_codec.planning.plan import PlanCapacity, PlanSpec
from sglang_codec.planning.planner import Planner, make_plan
from sglang_codec.planning.tables import MOST_POINTS
from sglang_codec.testing import random_counts, rows_of, with_slots

UNLIMITED = PlanCapacity(1 << 30, 1 << 30, 1 << 30, 1 << 30)
SPEC = PlanSpec(SHAPE, (16, 64, 128), 32, 33, tail_headroom=128, bundle_rows=64)
TABLE = COST_TABLES / "nvidia_h100_80gb_hbm3_d128.json"
COST = CostModel.from_json(TABLE, SPEC.shape.group)


def forest_of(seed: int, batch: int, nodes: int, longest: int) -> PrefixForest:
    counts = random_counts(
        seed, batch=batch, nodes=nodes, longest_run=longest, longest_tail=longest
    )
    return PrefixForest.from_paths(with_slots(counts))


def test_equal_batches_get_equal_plans() -> None:
    forest = forest_of(5, 300, 40, 500)
    planner = Planner(SPEC, COST, UNLIMITED)
    assert planner.make_plan(forest).to_dict() == planner.make_plan(forest).to_dict()


def shared_and_private(batch: int, shared: int, private: int) -> PrefixForest:
    rows = [[("shared", shared), (f"private {row}", private)] for row in range(batch)]
    return PrefixForest.from_paths(with_slots(rows))


def test_partials_are_dearer_where_the_l2_does_not_keep_them() -> None:
    forest = shared_and_private(512, 1024, 32)
    spec = dataclasses.replace(SPEC, row_tiles=(64, 128), num_slots=16, tail_headroom=0)
    plans = {
        tokens: make_plan(forest, dataclasses.replace(spec, l2_tokens=tokens), COST, UNLIMITED)
        for tokens in (0.0, 1e9)
    }
    assert plans[0.0].num_parts < plans[1e9].num_parts
    assert plans[0.0].makespan_us >= plans[1e9].makespan_us


def test_smaller_tiles_are_used_where_the_slots_lack_tasks() -> None:
    forest = shared_and_private(128, 8192, 1)
    plan = make_plan(forest, dataclasses.replace(SPEC, bundle_rows=0), COST, UNLIMITED)
    wide = dataclasses.replace(SPEC, row_tiles=(16, 64), bundle_rows=0)
    assert plan.makespan_us <= 1.02 * make_plan(forest, wide, COST, UNLIMITED).makespan_us


def test_tiles_of_one_run_read_the_same_tokens_at_the_same_time() -> None:
    """Gangs: each piece of a long run is read by all of its tiles, each in a slot of its own."""
    forest = shared_and_private(64, 60_000, 1)
    spec = dataclasses.replace(SPEC, row_tiles=(64, 128), bundle_rows=0)
    plan = make_plan(forest, spec, COST, UNLIMITED)
    long = plan.tasks[:, 3] > 1
    pieces: dict[int, list[int]] = {}
    for start, slot in zip(plan.start[long].tolist(), plan.slot[long].tolist(), strict=True):
        pieces.setdefault(start, []).append(slot)
    assert len(pieces) > 4
    assert all(len(slots) == len(set(slots)) == 2 for slots in pieces.values())


def test_a_plan_outlives_the_planner() -> None:
    forest = forest_of(6, 50, 9, 400)
    plan = make_plan(forest, SPEC, COST, UNLIMITED)
    before = plan.to_dict()
    for seed in range(20):
        make_plan(forest_of(seed, 50, 9, 400), SPEC, COST, UNLIMITED)
    assert plan.to_dict() == before


def test_forests_of_another_integer_type_are_planned_too() -> None:
    forest = forest_of(7, 30, 5, 300)
    arrays = {name: getattr(forest, name) for name in ("parent", "start", "first", "order")}
    planner = Planner(SPEC, COST, UNLIMITED)
    for change in (lambda a: a.astype(np.int64), lambda a: np.repeat(a, 2)[::2], _read_only):
        other = dataclasses.replace(forest, **{k: change(v) for k, v in arrays.items()})
        assert planner.make_plan(other).to_dict() == planner.make_plan(forest).to_dict()


def _read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "cut",
    [
        Cut("division", in_turn=False),
        Cut("division"),
        Cut("pages", 64),
        Cut("splits", 8),
        Cut("splits"),
    ],
    ids=str,
)
@pytest.mark.parametrize("nodes", [0, 12])
def test_a_plan_that_is_cut_as_told_reads_every_token_once(cut: Cut, nodes: int) -> None:
    counts = random_counts(3, batch=70, nodes=nodes, longest_run=900, longest_tail=90)
    paths = with_slots(counts)
    forest = PrefixForest.from_paths(paths)
    plan = make_plan(forest, SPEC, COST, UNLIMITED, cut)
    check_plan(plan, TokenRows.of_slots(rows_of(paths)), SPEC, forest)
    chunks = plan.tasks[: plan.num_tasks - plan.num_bundles, 1]
    if cut.into == "pages":
        assert chunks.max() == 64


def test_a_cost_table_of_too_many_points_is_refused() -> None:
    tokens = np.arange(MOST_POINTS, dtype=np.float64)
    model = CostModel(np.array([16]), tokens, 1 + tokens[None], "long")
    with pytest.raises(ValueError, match=f"{MOST_POINTS + 1} points in cost table 'long', at most"):
        Planner(SPEC, model, UNLIMITED)


def test_too_many_query_tiles_are_refused() -> None:
    spec = dataclasses.replace(SPEC, row_tiles=tuple(range(16, 25)))
    model = roofline_cost_model(
        SHAPE,
        num_ctas=8,
        bandwidth=1e12,
        flops=1e14,
        task_overhead_us=1.0,
    )
    with pytest.raises(ValueError, match="9 query tiles, at most 8 are planned for"):
        Planner(spec, model, UNLIMITED)
