"""The ablation's plans: every way to cut covers the work, and is what its name says."""

from __future__ import annotations

import ablate_plans
import numpy as np
import pytest
import torch
from bench_planner import UNLIMITED, cost_of, radix_paths, spec_of
from cuts import CUTS
from library.attention import tables, timing
from library.attention.problem import KVPool

from sglang_codec import PrefixForest
from sglang_codec.planning.plan import Plan
from sglang_codec.planning.planner import make_plan

ROW = tables.Row("small", "tree", "4/2", *tables.parse_tree("1,2,6_300,0,40"))
# long and short rows alternate: dealt out in turn, the long ones meet each other
MIXED = tables.Row("mixed", "tree", "4/2", *tables.parse_tree("1,2,64_9000,5000,2000"))


def plan_of(row: tables.Row, name: str) -> Plan:
    spec = spec_of(row)
    forest = PrefixForest.from_radix_paths(*radix_paths(row, tails=False))
    return make_plan(forest, spec, cost_of(spec), UNLIMITED, CUTS[name])


def chunks_of(plan: Plan) -> np.ndarray:
    """Tokens of the tasks that are no bundles."""
    return plan.tasks[: plan.num_tasks - plan.num_bundles, 1]


def test_the_plans_differ_as_their_names_say() -> None:
    lpt, dealt = plan_of(MIXED, "division, longest first"), plan_of(MIXED, "division, round robin")
    assert sorted(chunks_of(lpt)) == sorted(chunks_of(dealt))
    assert lpt.makespan_us < dealt.makespan_us
    for size in (64, 256):
        plan = plan_of(MIXED, f"pages of {size}, round robin")
        assert chunks_of(plan).max() == size
        per_slot = np.bincount(plan.slot, minlength=plan.num_slots)
        assert per_slot.max() - per_slot.min() <= 1


def test_splits_are_the_same_number_for_every_long_item() -> None:
    plan = plan_of(MIXED, "8 splits each")
    of_node = np.bincount(plan.node[plan.node >= 0])
    assert (of_node % 8 == 0).all()
    assert of_node.max() >= 8
    assert plan_of(MIXED, "splits that fill the slots").num_tasks >= plan.num_slots


@pytest.mark.parametrize("name", CUTS)
def test_a_plan_of_each_cut_reads_the_same_tokens(name: str) -> None:
    plan, own = plan_of(ROW, name), plan_of(ROW, "planner")
    assert plan.kv_tokens_read == own.kv_tokens_read
    assert plan.makespan_us >= 0.9 * own.makespan_us


def test_each_plan_is_run_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        timing, "measure", lambda samplers, *_: {n: s(1)[0] for n, s in samplers.items()}
    )
    options = ablate_plans.make_parser().parse_args(
        ["--device=cpu", "--dtype=float32", "--head-dim=16", "--layers=1", "--rounds=1"]
    )
    pool = KVPool(torch.float32, torch.float32, torch.device("cpu"))
    row = tables.Row("small", "tree", "2/1", *tables.parse_tree("1,2_300,4"))
    ceilings = {"copy_TBps": 3.0, "bf16_TFLOPs": 790.0}
    entry = ablate_plans.measure(row, pool, ceilings, options)
    assert entry["us"].keys() == entry["plan"].keys() == CUTS.keys()
    pages = [entry["plan"][f"pages of {size}, round robin"]["tasks"] for size in (64, 256)]
    assert pages[0] > pages[1]
    assert entry["wrong"] == []
    assert max(entry["err"].values()) < 1e-5
    assert min(entry["us"].values()) > 0


def test_the_table_shows_multiples_of_the_planners_time() -> None:
    first = {"table": "codec", "name": "a", "heads": "32/8", "wrong": []}
    first |= {"us": {"planner": 10.0, "x": 20.0, "y": 10.0}}
    second = first | {"name": "b", "us": {"planner": 10.0, "x": 80.0, "y": 1.0}, "wrong": ["y"]}
    *_, one, two, mean = ablate_plans.report([first, second]).splitlines()
    assert one == "| codec a | 32/8 | 10.0 | 2.00x | 1.00x |"
    assert two == "| codec b | 32/8 | 10.0 | 8.00x | - |"
    assert mean.endswith("| 4.00x | 1.00x |")
    assert ablate_plans.slower(second | {"wrong": ["planner"]}) == {}
