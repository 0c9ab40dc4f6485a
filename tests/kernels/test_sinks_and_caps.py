"""Attention sinks and soft caps: in whichever launch a row ends, and never twice."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import layer_problem
from planned import plan_batch

from sglang_codec import attention
from sglang_codec.kernels.por import por
from sglang_codec.reference import decode_attention
from sglang_codec.testing import (
    Counts,
    assert_lse_close,
    assert_within_low_precision_error,
    tree_counts,
)

INF = float("inf")
BATCHES: dict[str, Counts] = {
    "merged rows": [[("prompt", 400), (f"tail {row}", 5 + row)] for row in range(5)],
    "rows of one part": [[("a", 63)], [("b", 1)], [("c", 17)], []],
    "bundles": [[(f"group {r // 5}", 9), (f"tail {r}", 3 + r % 4)] for r in range(60)],
    "many parts": [[("long", 9000), (f"tail {row}", 1)] for row in range(2)],
}
LAYERS: dict[str, dict[str, Any]] = {
    "sinks": {"sinks": True},
    "cap": {"soft_cap": 30.0},
    "both": {"sinks": True, "soft_cap": 2.0},
}


@pytest.fixture(autouse=True)
def _tanh_far_from_zero_is_meant() -> Any:
    """It is computed from a power of two that may be infinite, of which the interpreter warns."""
    with np.errstate(over="ignore"):
        yield


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", BATCHES)
def test_every_kind_of_row(
    name: str, layer: str, device: torch.device, low_dtype: torch.dtype
) -> None:
    paths, problem = layer_problem(BATCHES[name], device, low_dtype, **LAYERS[layer])
    planned = plan_batch(paths, problem)
    out, lse = planned.check(problem)
    assert (out[len(paths) :] == 0).all()
    assert (lse[len(paths) :] == -INF).all()
    parts = planned.plan.num_parts
    assert planned.plan.num_bundles > 0 or name != "bundles"
    assert parts == 0 or name != "rows of one part"
    assert parts > 2 * len(paths) or name != "many parts"


run = st.tuples(st.integers(0, 9), st.integers(0, 150))
sink = st.one_of(st.floats(-20, 20), st.sampled_from([-INF, -6e4, 6e4]))


@settings(max_examples=15, deadline=None)
@given(
    nodes=st.lists(run, max_size=4),
    rows=st.lists(run, min_size=1, max_size=6),
    group=st.sampled_from([1, 3, 4, 7]),
    cap=st.one_of(st.none(), st.floats(0.1, 100)),
    data=st.data(),
)
def test_any_forest_with_any_sinks(
    device: torch.device, nodes: Any, rows: Any, group: int, cap: float | None, data: Any
) -> None:
    sinks = data.draw(st.one_of(st.none(), st.lists(sink, min_size=2 * group, max_size=2 * group)))
    dtype = torch.float16 if device.type == "cpu" else torch.bfloat16
    counts = tree_counts(nodes, rows)
    paths, problem = layer_problem(counts, device, dtype, sinks=sinks, soft_cap=cap, group=group)
    plan_batch(paths, problem).check(problem)


@pytest.mark.parametrize("name", ["merged rows", "bundles"])
def test_partials_hold_no_sink(name: str, device: torch.device, low_dtype: torch.dtype) -> None:
    paths, problem = layer_problem(BATCHES[name], device, low_dtype, sinks=True)
    kept = []
    for sinks in (None, problem.sinks):
        planned = plan_batch(paths, problem)
        with mock.patch.object(attention, "por"):
            planned.attend(dataclasses.replace(problem, sinks=sinks))
        kept.append((planned.buffers.partial_out, planned.buffers.partial_lse))
    for without, with_sinks in zip(*kept, strict=True):
        assert torch.equal(without, with_sinks)


@pytest.mark.parametrize("name", ["merged rows", "rows of one part"])
def test_what_sinks_become_at_the_ends(
    name: str, device: torch.device, low_dtype: torch.dtype
) -> None:
    """A sink of -inf is none, and one that is beyond all scores leaves nothing."""
    paths, plain = layer_problem(BATCHES[name], device, low_dtype)
    planned = plan_batch(paths, plain)
    out, lse = planned.attend(plain)
    ends = torch.tensor([-INF, INF] * 4, device=device)
    sunk, sunk_lse = planned.attend(dataclasses.replace(plain, sinks=ends))
    assert torch.equal(sunk[:, ::2], out[:, ::2])
    torch.testing.assert_close(sunk_lse[:, ::2], lse[:, ::2])
    assert (sunk[:, 1::2] == 0).all()
    assert ((sunk_lse[:, 1::2] == INF) == (lse[:, 1::2] > -INF)).all()


@pytest.mark.parametrize("layer", LAYERS)
def test_a_nan_stays_with_its_row(layer: str, device: torch.device, low_dtype: torch.dtype) -> None:
    paths, problem = layer_problem(
        BATCHES["bundles"], device, low_dtype, padding=0, **LAYERS[layer]
    )
    spoiled = 17
    problem.v_buffer[problem.rows[spoiled][-1]] = float("nan")
    planned = plan_batch(paths, problem)
    assert planned.plan.num_bundles > 0
    out, lse = planned.attend(problem)
    exact, exact_lse = problem.exact()
    assert out[spoiled].isnan().all()
    others = [row for row in range(len(paths)) if row != spoiled]
    assert_within_low_precision_error(out[others], exact[others], problem.eager()[others])
    assert_lse_close(lse, exact_lse)


@pytest.mark.parametrize("layer", LAYERS)
def test_rows_that_grow(layer: str, device: torch.device, low_dtype: torch.dtype) -> None:
    counts = [[("prompt", 130), ("tail", 20)], [("prompt", 130)], [("alone", 40)]]
    paths, problem = layer_problem(counts, device, low_dtype, padding=0, **LAYERS[layer])
    planned = plan_batch(paths, problem, tail_headroom=30)
    for length in (150, 141, 130):
        planned.buffers.row_lengths[0] = length
        rows = [problem.rows[0][:length], *problem.rows[1:]]
        planned.check(dataclasses.replace(problem, rows=rows))


def test_the_lse_is_that_of_a_state(device: torch.device, low_dtype: torch.dtype) -> None:
    """With the sink in it, so that a part that another kernel attends to can be merged in."""
    paths, problem = layer_problem([[("a", 90)]], device, low_dtype, sinks=True, padding=0)
    first, second = problem.rows[0][:40], problem.rows[0][40:]
    of_first = dataclasses.replace(problem, rows=[first])
    planned = plan_batch([[("a", first.numpy().astype(np.int32))]], of_first)
    out, lse = planned.attend(of_first)
    k, v = problem.k_buffer, problem.v_buffer
    rest, rest_lse = decode_attention(problem.q, k, v, [second], problem.sm_scale)
    weights = torch.stack([lse.double(), rest_lse]).mul(np.log(2)).softmax(0)[..., None]
    merged = weights[0] * out.double() + weights[1] * rest
    assert_within_low_precision_error(merged.to(low_dtype), problem.exact()[0], problem.eager())


@pytest.mark.parametrize("soft_cap", [0.5, 50.0])
def test_scores_beyond_a_cap_do_not_overflow(
    soft_cap: float, device: torch.device, low_dtype: torch.dtype
) -> None:
    """All scores become the cap or its opposite."""
    paths, problem = layer_problem(BATCHES["merged rows"], device, low_dtype, soft_cap=soft_cap)
    planned = plan_batch(paths, problem)
    planned.check(dataclasses.replace(problem, sm_scale=1e4))


@pytest.mark.parametrize(
    "sinks",
    [torch.zeros(7), torch.zeros(8, 1), torch.zeros(8, dtype=torch.int32), torch.zeros(16)[::2]],
    ids=["heads", "dimensions", "dtype", "strides"],
)
def test_sinks_that_do_not_match_are_refused(
    sinks: torch.Tensor, device: torch.device, low_dtype: torch.dtype
) -> None:
    paths, problem = layer_problem(BATCHES["merged rows"], device, low_dtype)
    wrong = dataclasses.replace(problem, sinks=sinks.to(device))
    if sinks.stride() == (2,):
        wrong = dataclasses.replace(problem, sinks=torch.zeros(16, device=device)[::2])
    planned = plan_batch(paths, problem)
    with pytest.raises(ValueError, match=r"pac needs .* sinks \[Hq\] contiguous floats"):
        planned.attend(wrong)
    buffers = planned.buffers
    partials = (buffers.partial_out, buffers.partial_lse, buffers.plan)
    with pytest.raises(ValueError, match=r"por needs .* sinks \[Hq\] contiguous floats"):
        por(problem.q, None, *partials, merges_offset=buffers.layout.merges, sinks=wrong.sinks)
