"""What plans are made for in the tests of the planners."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import strategies as st

from sglang_codec.planning.choice import packer_for, planner_for
from sglang_codec.planning.cost_model import CostModel, roofline_cost_model
from sglang_codec.planning.plan import PlanCapacity, PlanSpec

UNLIMITED = PlanCapacity(1 << 30, 1 << 30, 1 << 30, 1 << 30)
SPECS = st.builds(
    PlanSpec,
    group=st.sampled_from((1, 2, 4, 7, 8, 16)),
    head_dim=st.sampled_from((64, 128)),
    kv_element_bytes=st.sampled_from((2, 4)),
    row_tiles=st.sampled_from(((16,), (16, 64), (16, 32, 64))),
    block_kv=st.sampled_from((16, 64, 128)),
    num_slots=st.sampled_from((1, 3, 33)),
    tail_headroom=st.sampled_from((0, 1, 40)),
    bundle_rows=st.sampled_from((0, 32, 64)),
)
SPEC = PlanSpec(4, 128, 2, (16, 64), 64, 33)


def planner_of(spec: PlanSpec, costs: CostModel, capacity: PlanCapacity) -> SimpleNamespace:
    """The planner that serves: `make_plan` of a forest, `pack_paths` of radix paths."""
    make_plan, pack_paths = (f(spec, costs, capacity) for f in (planner_for, packer_for))
    return SimpleNamespace(make_plan=make_plan, pack_paths=pack_paths)


def cost_model(spec: PlanSpec) -> CostModel:
    return roofline_cost_model(
        head_dim=spec.head_dim,
        kv_element_bytes=spec.kv_element_bytes,
        num_ctas=264,
        bandwidth=3e12,
        flops=8e14,
        task_overhead_us=2.0,
    )
