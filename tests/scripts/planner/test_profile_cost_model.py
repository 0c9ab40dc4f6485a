"""The cost-model profiler without a GPU: its batches, its curves, the file the planner reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import profile_cost_model as profile
import pytest
import torch
from library.attention import timing
from library.attention.problem import KVPool

from sglang_codec import device as machine
from sglang_codec.attention_shape import AttentionShape
from sglang_codec.kernels.launch import launch_config
from sglang_codec.planning.cost_model import CostModel
from sglang_codec.planning.plan import PlanCapacity
from sglang_codec.planning.planner import make_plan

SHAPE = AttentionShape.plain(32, 8, 128)
GPU = machine.Device("NVIDIA H100 80GB HBM3", launch_config((9, 0), SHAPE), 132, 3e12, 8e14, 5e7)
UNLIMITED = PlanCapacity(*[2**31 - 1] * 4)


@pytest.mark.parametrize("waves", profile.WAVES)
@pytest.mark.parametrize("tokens", [64, 256, 4096])
@pytest.mark.parametrize("heads", [(32, 8), (32, 32), (16, 1), (64, 8)])
def test_a_batch_gives_every_slot_equal_tasks(
    heads: tuple[int, int], tokens: int, waves: int
) -> None:
    gpu = dataclasses.replace(GPU, config=dataclasses.replace(GPU.config, bundle=None))
    spec = machine.plan_spec(gpu, AttentionShape.plain(*heads, 128))
    model = machine.cost_model(dataclasses.replace(GPU, name="none"), spec)
    slots = np.arange(waves * spec.num_slots * tokens, dtype=np.int32)
    for rows in spec.row_tiles:
        forest = profile.equal_forest(
            waves * spec.num_slots, max(1, rows // spec.shape.group), tokens, slots
        )
        plan = make_plan(forest, spec, model, UNLIMITED)
        profile.check_even(plan, waves, tokens)
        with pytest.raises(profile.UnevenPlan):
            profile.check_even(plan, waves + 1, tokens)
        with pytest.raises(profile.UnevenPlan):
            profile.check_even(plan, waves, tokens + 1)


def test_curves_increase_from_zero_tokens() -> None:
    assert profile.complete_curve([64, 128], [3.0, 4.0]) == [2.0, 3.0, 4.0]
    noisy = profile.complete_curve([64, 128, 256], [3.0, 2.9, 5.0])
    assert all(b > a for a, b in zip(noisy, noisy[1:], strict=False))
    assert noisy[-1] == 5.0
    through_zero = profile.complete_curve([64, 128], [1.0, 2.5])
    assert 0 < through_zero[0] < 1.0


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("dims", [(128, 128), (192, 128)], ids=str)
def test_the_file_is_the_one_the_planner_reads(
    dims: tuple[int, int], kv_dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = AttentionShape(32, 8, *dims, "bfloat16", "bfloat16")
    table = {"group": 4, "num_kv_heads": 8, "slots": 66, "rows": [16, 64], "tokens": [0, 64, 128]}
    table["us"] = [profile.complete_curve([64, 128], [2.0, 3.0])] * 2
    monkeypatch.setattr(machine, "COST_TABLES", tmp_path)
    shape, other = (dataclasses.replace(shape, kv_dtype=name) for name in (kv_dtype, "float16"))
    path = machine.cost_table(GPU.name, shape)
    path.write_text(json.dumps(profile.document(GPU.name, shape, [table], {})))
    model = machine.cost_model(GPU, machine.plan_spec(GPU, shape))
    narrow = machine.plan_spec(GPU, dataclasses.replace(shape, key_dim=96))
    assert machine.cost_model(GPU, narrow).name == "roofline"
    assert isinstance(model, CostModel)
    assert model.task_us(np.array([64]), np.array([96]))[0] == pytest.approx(2.5)
    # tables are by bytes: another one is not taken
    is_found = machine.cost_table(GPU.name, other).exists()
    assert is_found == (kv_dtype == "bfloat16")


def test_a_task_is_timed_by_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole path with interpreted kernels; the clock says 5 us and 3 us per wave."""
    monkeypatch.setattr(timing, "calls_per_replay", lambda layers, limit_us: 1)
    monkeypatch.setattr(profile, "layers_to_stay_cold", lambda layer_bytes: 1)
    monkeypatch.setattr(
        timing,
        "measure",
        lambda samplers, calls, rounds: {
            name: 5.0 + 3.0 * int(name) for name, sample in samplers.items() if sample(1)
        },
    )
    pool = KVPool(torch.float32, torch.float32, torch.device("cpu"))
    shape = AttentionShape.plain(4, 2, 16, "float32")
    us, slots = profile.task_us(shape, 16, 64, pool, scattered=True)
    assert us == pytest.approx(3.0)
    assert slots >= 1
