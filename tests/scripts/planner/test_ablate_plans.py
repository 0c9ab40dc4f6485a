"""The ablation's plans: every way to cut covers the work, and is what its name says."""

from __future__ import annotations

from collections.abc import Callable

import ablate_plans
import numpy as np
import pytest
import torch
from bench_planner import UNLIMITED, radix_paths, spec_of
from cuts import cuts, free_first, splits
from library.attention import tables, timing
from library.attention.problem import KVPool

from sglang_codec import PrefixForest
from sglang_codec import wrapper as wrapper_module
from sglang_codec.planning.cost_model import COST_TABLES, CostModel
from sglang_codec.planning.planner import make_plan

ROW = tables.Row("small", "tree", "4/2", *tables.parse_tree("1,2,6_300,0,40"))
SPEC = spec_of(ROW)
COST = CostModel.from_json(COST_TABLES / "nvidia_h100_80gb_hbm3_d128.json", 4)
CUTS = {name: cut for name, cut in cuts(SPEC, COST).items() if cut is not None}
ROWS = np.array([64, 16, 16, 64, 16])
TOKENS = np.array([120_000, 7, 2048, 64, 1])
IDLE = np.zeros(SPEC.num_slots)


@pytest.mark.parametrize("name", CUTS)
def test_every_token_of_every_tile_is_in_one_task(name: str) -> None:
    item, begin, tokens, slot = CUTS[name](ROWS, TOKENS, IDLE)
    assert tokens.min() > 0
    assert 0 <= slot.min() <= slot.max() < SPEC.num_slots
    for i, length in enumerate(TOKENS):
        mine = item == i
        order = np.argsort(begin[mine])
        ends = (begin + tokens)[mine][order]
        assert begin[mine][order].tolist() == [0, *ends[:-1]]
        assert ends[-1] == length


@pytest.mark.parametrize("name", CUTS)
def test_nothing_to_cut_gives_no_task(name: str) -> None:
    assert [len(part) for part in CUTS[name](ROWS[:0], TOKENS[:0], IDLE)] == [0] * 4


def test_the_plans_differ_as_their_names_say() -> None:
    tokens = np.tile([2048, 32], 2 * SPEC.num_slots)  # dealt out, the long ones meet each other
    rows = np.full(len(tokens), 16)
    lpt = CUTS["division, longest first"](rows, tokens, IDLE)
    dealt = CUTS["division, round robin"](rows, tokens, IDLE)
    assert all((a == b).all() for a, b in zip(lpt[:3], dealt[:3], strict=True))
    us = COST.task_us(rows[lpt[0]], lpt[2])
    assert np.bincount(lpt[3], us).max() < 0.7 * np.bincount(dealt[3], us).max()
    for size in (64, 256):
        item, _, tokens, slot = CUTS[f"pages of {size}, round robin"](ROWS, TOKENS, IDLE)
        assert tokens.max() == size
        assert len(item) == sum(-(-TOKENS // size))
        assert slot.tolist() == [i % SPEC.num_slots for i in range(len(slot))]


def test_splits_are_the_same_number_for_every_long_item() -> None:
    item, _, tokens, _ = CUTS["8 splits each"](ROWS, TOKENS, IDLE)
    block = SPEC.block_kv
    # a chunk is a block at least
    assert np.bincount(item).tolist() == np.minimum(8, -(-TOKENS // block)).tolist()
    size = -(-120_000 // 8 // block) * block
    assert tokens[item == 0].tolist() == [size] * 7 + [120_000 - 7 * size]
    filling = splits(SPEC, None)(ROWS, TOKENS, IDLE)[0]
    assert np.bincount(filling)[0] == -(-SPEC.num_slots // len(ROWS))
    many = np.full(10 * SPEC.num_slots, 4096)
    assert len(splits(SPEC, None)(np.full(len(many), 16), many, IDLE)[0]) == len(many)


def test_tasks_keep_away_from_slots_that_are_busy() -> None:
    slot = free_first(np.array([1.0, 5.0, 3.0, 2.0]), np.array([4.0, 0.0, 0.0]))
    # 5 -> slot 1, 3 -> slot 2, 2 -> slot 2 (at 3), 1 -> slot 0 (at 4)
    assert slot.tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize("name", cuts(SPEC, COST))
def test_a_plan_of_each_cut_reads_the_same_tokens(name: str) -> None:
    forest = PrefixForest.from_radix_paths(*radix_paths(ROW, tails=False))
    plan = make_plan(forest, SPEC, COST, UNLIMITED, cut=cuts(SPEC, COST)[name])
    own = make_plan(forest, SPEC, COST, UNLIMITED)
    assert plan.kv_tokens_read == own.kv_tokens_read
    assert plan.makespan_us >= 0.9 * own.makespan_us


def stand_in_planner(seen: list[object]) -> Callable:
    """`make_plan` that notes the cut it was given and plans as ever."""

    def plan(*arguments: object, cut: object = None) -> object:
        seen.append(cut)
        return make_plan(*arguments)

    return plan


def test_each_plan_is_run_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(ablate_plans, "make_plan", stand_in_planner(seen))
    monkeypatch.setattr(
        timing, "measure", lambda samplers, *_: {n: s(1)[0] for n, s in samplers.items()}
    )
    before = wrapper_module.planner_for
    options = ablate_plans.make_parser().parse_args(
        ["--device=cpu", "--dtype=float32", "--head-dim=16", "--layers=1", "--rounds=1"]
    )
    pool = KVPool(torch.float32, torch.device("cpu"))
    row = tables.Row("small", "tree", "2/1", *tables.parse_tree("1,2_20,4"))
    ceilings = {"copy_TBps": 3.0, "bf16_TFLOPs": 790.0}
    entry = ablate_plans.measure(row, pool, ceilings, options)
    # the planner's own plan is made without it
    assert len({id(cut) for cut in seen}) == len(seen) == len(CUTS)
    assert entry["us"].keys() == entry["plan"].keys() == {"planner", *CUTS}
    assert entry["wrong"] == []
    assert max(entry["err"].values()) < 1e-5
    assert min(entry["us"].values()) > 0
    assert wrapper_module.planner_for is before


def test_the_table_shows_multiples_of_the_planners_time() -> None:
    first = {"table": "codec", "name": "a", "heads": "32/8", "wrong": []}
    first |= {"us": {"planner": 10.0, "x": 20.0, "y": 10.0}}
    second = first | {"name": "b", "us": {"planner": 10.0, "x": 80.0, "y": 1.0}, "wrong": ["y"]}
    *_, one, two, mean = ablate_plans.report([first, second]).splitlines()
    assert one == "| codec a | 32/8 | 10.0 | 2.00x | 1.00x |"
    assert two == "| codec b | 32/8 | 10.0 | 8.00x | - |"
    assert mean.endswith("| 4.00x | 1.00x |")
    assert ablate_plans.slower(second | {"wrong": ["planner"]}) == {}
