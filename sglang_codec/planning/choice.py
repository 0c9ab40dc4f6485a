"""Which planner plans: the one in C where it can be built, else the one in Python."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sglang_codec.planning import native
from sglang_codec.planning.cost_model import CostModel
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.plan import Plan, PlanCapacity, PlanSpec
from sglang_codec.planning.planner import make_plan

MakePlan = Callable[[PrefixForest], Plan]


def planner_for(spec: PlanSpec, cost_model: CostModel, capacity: PlanCapacity) -> MakePlan:
    """Plans batches for one machine, attention shape and set of buffers.

    The function that is returned raises PlanCapacityError where not even the coarsest plan fits.
    """
    if native.is_available():
        return native.NativePlanner(spec, cost_model, capacity).make_plan
    return partial(make_plan, spec=spec, cost_model=cost_model, capacity=capacity)
