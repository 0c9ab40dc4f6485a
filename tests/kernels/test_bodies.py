"""Both bodies of PAC, with and without warp roles, where there is a GPU that has both.

Small enough for a memory checker (`sanitize_kernels.py`): chunks, bundles, rows of many
parts, padded rows, growing tails, exact weights, and the repair of a bundle with a NaN.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from planned import plan_batch, unused_slot, verified

from sglang_codec.attention_shape import AttentionShape
from sglang_codec.kernels.launch import LaunchConfig, launch_config
from sglang_codec.testing import (
    Counts,
    Problem,
    assert_within_low_precision_error,
    make_problem,
    with_slots,
)

pytestmark = pytest.mark.cuda

KV_HEADS, PADDING, HEADROOM = 2, 3, 2
BATCHES: dict[str, Counts] = {
    "few-shot": [[("prompt", 700), (f"question {row}", 60 + row)] for row in range(20)],
    "bundles": [
        [("prompt", 300), (f"group {row // 5}", 17), (f"tail {row}", 1 + row % 7)]
        for row in range(40)
    ],
    "many parts": [[("long", 9000), (f"tail {row}", 1)] for row in range(2)],
}
SHAPES = {  # group, key dim, value dim
    "64 columns": (8, 64, 64),
    "64 columns, exact weights": (2, 64, 64),
    "group of 4": (4, 128, 128),
    "256 columns": (8, 256, 256),
    "256 columns, exact weights": (1, 256, 256),
    "96 columns, exact weights": (1, 96, 96),
    "80 columns": (4, 80, 80),
    "long keys": (16, 192, 128),
    "long keys, exact weights": (2, 192, 128),
}
VERIFIED = {  # query rows, group, key dim, value dim, dtype of the cache
    "4 rows": (4, 8, 128, 128, None),
    "3 rows of an odd group": (3, 5, 128, 128, None),
    "4 rows of 64 columns": (4, 8, 64, 64, None),
    "2 rows, exact weights": (2, 1, 64, 64, None),
    "64 rows": (8, 8, 128, 128, None),
    "64 rows of 256 columns": (4, 16, 256, 256, None),
    "long keys": (4, 16, 192, 128, None),
    "fp8": (4, 8, 128, 128, torch.float8_e4m3fn),
}
LAYERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sinks and a cap": {"soft_cap": 20.0},
    "window": {"window": 333},
}


def of_layer(problem: Problem, layer: str) -> Problem:
    """With a cap, and then sinks too, or a window, if the layer has them."""
    problem = dataclasses.replace(problem, **LAYERS[layer])
    if problem.soft_cap is None:
        return problem
    sinks = 2 * torch.randn(problem.q.shape[1], device=problem.q.device) + 3
    return dataclasses.replace(problem, sinks=sinks)


@pytest.fixture(params=[True, False], ids=["warp roles", "plain"])
def roles(request: pytest.FixtureRequest) -> bool:
    return request.param


def config_for(
    device: torch.device,
    roles: bool,
    group: int,
    dims: tuple[int, int],
    kv_dtype: torch.dtype | None = None,
) -> LaunchConfig:
    """The configuration of this GPU for a shape, with or without warp roles."""
    dtypes = "bfloat16", str(kv_dtype or torch.bfloat16).removeprefix("torch.")
    shape = AttentionShape(KV_HEADS * group, KV_HEADS, *dims, *dtypes)
    capability = torch.cuda.get_device_capability(device)
    config = launch_config(capability, shape, warp_roles=roles)
    if config.warp_roles != roles:
        pytest.skip("this GPU has no warp roles")
    return config


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", BATCHES)
def test_a_padded_step_of_growing_rows(
    name: str, shape: str, layer: str, roles: bool, device: torch.device, dtype: torch.dtype
) -> None:
    counts, (group, *dims) = BATCHES[name], SHAPES[shape]
    config = config_for(device, roles, group, dims)
    rows = len(counts)
    paths = with_slots([*counts, [("new", rows)]], seed=6)
    problem = make_problem(
        paths,
        num_qo_heads=KV_HEADS * group,
        num_kv_heads=KV_HEADS,
        head_dim=dims[0],
        value_dim=dims[1],
        dtype=dtype,
        device=device,
        padding=PADDING - 1,  # the row of the new slots is padding too
    )
    problem = of_layer(problem, layer)
    new = problem.rows.pop()
    planned = plan_batch(paths[:rows], problem, tail_headroom=HEADROOM, config=config)
    assert planned.plan.num_bundles > 0 or name != "bundles"
    assert planned.plan.num_parts > rows or name != "many parts"
    problem.rows[:] = [torch.cat([row, new[r : r + 1]]) for r, row in enumerate(problem.rows)]
    lengths = torch.ones(rows + PADDING, dtype=torch.int64)
    lengths[:rows] = torch.tensor([len(row) for row in problem.rows])
    slots = torch.full_like(lengths, unused_slot(problem))
    slots[:rows] = new
    planned.append(lengths.to(device), slots.to(device))
    out, _ = planned.check(problem)
    assert (out[rows:] == 0).all()


@pytest.mark.parametrize("shape", VERIFIED)
@pytest.mark.parametrize("name", [*BATCHES, "a split tail"])
def test_drafts_that_are_accepted_or_not(
    name: str, shape: str, roles: bool, device: torch.device, dtype: torch.dtype
) -> None:
    """Several query rows of each request, padded; what was rejected is overwritten."""
    query_rows, group, key_dim, value_dim, kv_dtype = VERIFIED[shape]
    config = config_for(device, roles, group, (key_dim, value_dim), kv_dtype)
    query_rows = min(query_rows, config.row_tiles[-1] // group)
    counts: Counts = BATCHES.get(name, [[("alone", 9001)], [("other", 70)]])
    counts = [[*row, (f"drafts {i}", query_rows)] for i, row in enumerate(counts)]
    rows, steps = len(counts), 3
    paths = with_slots([*counts, [("new", steps * rows * query_rows)]], seed=6)
    problem = make_problem(
        paths,
        num_qo_heads=KV_HEADS * group,
        num_kv_heads=KV_HEADS,
        head_dim=key_dim,
        value_dim=value_dim,
        dtype=dtype,
        kv_dtype=kv_dtype,
        device=device,
        padding=PADDING - 1,
        query_rows=query_rows,
    )
    new = problem.rows.pop().view(steps, rows, query_rows)
    of_plan = {"tail_headroom": steps * query_rows, "config": config}
    planned = plan_batch(paths[:rows], problem, **of_plan)
    assert planned.plan.num_parts > 0 or name in ("few-shot", "bundles")
    lengths = torch.ones(rows + PADDING, dtype=torch.int64)
    slots = torch.full((len(lengths), query_rows), unused_slot(problem))
    for step in range(steps):
        kept = [(row + step) % query_rows + 1 for row in range(rows)]
        problem.rows[:] = verified(problem.rows, kept, new[step])
        lengths[:rows] = torch.tensor([len(row) for row in problem.rows])
        slots[:rows] = new[step]
        planned.append(lengths.to(device), slots.flatten().to(device))
        out, _ = planned.check(problem)
        assert (out[rows * query_rows :] == 0).all()


@pytest.mark.parametrize("stages", [3, 4])
def test_long_keys_with_more_steps_or_more_queries(
    stages: int, device: torch.device, dtype: torch.dtype
) -> None:
    """Large tiles that follow one another, with two query buffers and with four."""
    config = dataclasses.replace(config_for(device, True, 16, (192, 128)), stages=stages)
    paths = with_slots([[("prompt", 3000), (f"tail {row}", 70)] for row in range(64)], seed=4)
    heads = {"num_qo_heads": 16 * KV_HEADS, "num_kv_heads": KV_HEADS}
    widths = {"head_dim": 192, "value_dim": 128}
    problem = make_problem(paths, **heads, **widths, dtype=dtype, device=device)
    plan_batch(paths, problem, config=config).check(problem)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dims", [(64, 64), (80, 80), (96, 96), (192, 128), (256, 256)], ids=str)
def test_a_nan_stays_with_its_row(
    dims: tuple[int, int], layer: str, roles: bool, device: torch.device, dtype: torch.dtype
) -> None:
    config = config_for(device, roles, 4, dims)
    paths = with_slots(BATCHES["bundles"], seed=2)
    heads = {"num_qo_heads": 4 * KV_HEADS, "num_kv_heads": KV_HEADS}
    widths = {"head_dim": dims[0], "value_dim": dims[1]}
    problem = make_problem(paths, **heads, **widths, dtype=dtype, device=device)
    problem = of_layer(problem, layer)
    problem.v_buffer[problem.rows[17][-1]] = float("nan")
    out, _ = plan_batch(paths, problem, config=config).attend(problem)
    assert out[17].isnan().all()
    others = [row for row in range(len(paths)) if row != 17]
    exact, eager = problem.exact()[0], problem.eager()
    assert_within_low_precision_error(out[others], exact[others], eager[others])
