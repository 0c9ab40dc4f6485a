"""What plans are made for in the tests of the planners."""

from __future__ import annotations

from hypothesis import strategies as st

from sglang_codec.attention_shape import AttentionShape
from sglang_codec.planning.cost_model import CostModel, roofline_cost_model
from sglang_codec.planning.plan import PlanCapacity, PlanSpec

UNLIMITED = PlanCapacity(1 << 30, 1 << 30, 1 << 30, 1 << 30)
SHAPES = st.builds(
    AttentionShape.plain,
    num_qo_heads=st.sampled_from((8, 16, 32, 56, 64, 128)),
    num_kv_heads=st.just(8),
    head_dim=st.sampled_from((64, 128, 256)),
    dtype=st.sampled_from(("bfloat16", "float32")),
)
SPECS = st.builds(
    PlanSpec,
    SHAPES,
    row_tiles=st.sampled_from(((16,), (16, 64), (16, 32, 64))),
    block_kv=st.sampled_from((16, 64, 128)),
    num_slots=st.sampled_from((1, 3, 33)),
    tail_headroom=st.sampled_from((0, 1, 40)),
    bundle_rows=st.sampled_from((0, 32, 64)),
)
SHAPE = AttentionShape.plain(32, 8, 128)
SPEC = PlanSpec(SHAPE, (16, 64), 64, 33)


def cost_model(spec: PlanSpec) -> CostModel:
    return roofline_cost_model(
        spec.shape,
        num_ctas=264,
        bandwidth=3e12,
        flops=8e14,
        task_overhead_us=2.0,
    )
