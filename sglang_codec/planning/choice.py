"""Which planner plans: the one in C where it can be built, else the one in Python."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from sglang_codec.planning import native
from sglang_codec.planning.cost_model import CostModel
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.packed import PRIVATE_TOKENS, PackedPlan, pack
from sglang_codec.planning.paths import RadixPaths
from sglang_codec.planning.plan import Plan, PlanCapacity, PlanLayout, PlanSpec
from sglang_codec.planning.planner import make_plan

MakePlan = Callable[[PrefixForest], Plan]
PackPaths = Callable[[RadixPaths, np.ndarray, PlanLayout, np.ndarray], PackedPlan]


def planner_for(spec: PlanSpec, cost_model: CostModel, capacity: PlanCapacity) -> MakePlan:
    """Plans batches for one machine, attention shape and set of buffers.

    The function that is returned raises PlanCapacityError where not even the coarsest plan fits.
    """
    if native.is_available():
        return native.NativePlanner(spec, cost_model, capacity).make_plan
    return partial(make_plan, spec=spec, cost_model=cost_model, capacity=capacity)


def packer_for(spec: PlanSpec, cost_model: CostModel, capacity: PlanCapacity) -> PackPaths:
    """The same from radix paths and lengths to a packed plan; see `NativePlanner.pack_paths`.

    A server has other things in its caches when a batch changes: one call of the library takes a
    fraction of what its stages take one by one.
    """
    if native.is_available():
        return native.NativePlanner(spec, cost_model, capacity).pack_paths
    return partial(_pack_paths, planner_for(spec, cost_model, capacity))


def _pack_paths(
    plan: MakePlan, paths: RadixPaths, lengths: np.ndarray, layout: PlanLayout, out: np.ndarray
) -> PackedPlan:
    forest = PrefixForest.from_radix_paths(paths, lengths, private_tokens=PRIVATE_TOKENS)
    return pack(forest, plan(forest), layout, out)
