"""The kernels on plans that are made where no other fits, while rows grow to the headroom."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from planned import plan_batch

from sglang_codec.planning.capacity import rows_ranges
from sglang_codec.planning.cost_model import CostModel
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.frugal import frugal_plan
from sglang_codec.planning.plain import plain_plan
from sglang_codec.planning.plan import Plan, PlanCapacity, PlanSpec
from sglang_codec.testing import (
    Counts,
    lengths_of,
    make_problem,
    with_slots,
)

HEADROOM = 5
MakePlan = Callable[[PrefixForest, PlanSpec, CostModel], Plan]


def growing(batch: int) -> Counts:
    """Each prompt continues the one before; two more end where the third and the fifth do."""
    ends = [*range(batch), 2, 4]
    return [
        [*((f"turn {t}", 11 + 7 * t) for t in range(end + 1)), (f"own {row}", 1 + 3 * row)]
        for row, end in enumerate(ends)
    ]


def frugal(parts: int) -> MakePlan:
    capacity = PlanCapacity(64, parts, parts, 1 << 20)
    return lambda forest, spec, costs: frugal_plan(forest, spec, costs, capacity)


def plain(forest: PrefixForest, spec: PlanSpec, costs: CostModel) -> Plan:
    return plain_plan(forest.lengths, spec)


@pytest.mark.parametrize(
    "make_plan",
    [frugal(rows_ranges(11, 2)), frugal(40), frugal(1 << 20), plain],
    ids=["tightest", "some cuts", "all cuts", "plain"],
)
def test_outputs_are_exact_while_rows_grow(
    make_plan: MakePlan, device: torch.device, dtype: torch.dtype
) -> None:
    counts = growing(9)
    batch = len(counts)
    paths = with_slots([*counts, [("new", HEADROOM * batch)]], seed=5)
    problem = make_problem(
        paths, num_qo_heads=4, num_kv_heads=2, head_dim=64, dtype=dtype, device=device
    )
    slots = problem.rows.pop().view(batch, HEADROOM)
    problem = dataclasses.replace(problem, q=problem.q[:batch])
    planned = plan_batch(
        paths[:batch], problem, tail_headroom=HEADROOM, spare_rows=1, make_plan=make_plan
    )
    assert (planned.plan.max_lengths == lengths_of(counts) + HEADROOM).all()
    lengths = torch.from_numpy(lengths_of(counts).astype(np.int64)).to(device)
    for step in range(HEADROOM + 1):
        if step:
            planned.append(lengths + step, slots[:, step - 1].contiguous().to(device))
        if step not in (0, HEADROOM):
            continue
        rows = [torch.cat([row, slots[r, :step]]) for r, row in enumerate(problem.rows)]
        now = dataclasses.replace(problem, rows=rows)
        planned.check(now)
