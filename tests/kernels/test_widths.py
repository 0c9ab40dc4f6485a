"""Keys and values of widths that are no power of two, or unlike one another."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import layer_problem
from planned import plan_batch

from sglang_codec.attention import prefix_shared_attention, update_lengths
from sglang_codec.attention_shape import AttentionShape, columns_for
from sglang_codec.kernels.launch import launch_config
from sglang_codec.testing import (
    Counts,
    Problem,
    assert_lse_close,
    assert_within_low_precision_error,
    tree_counts,
)

NAN = float("nan")
CPU = torch.device("cpu")
SHAPE = AttentionShape.plain(32, 8, 128)
BATCHES: dict[str, Counts] = {
    "merged rows": [[("prompt", 400), (f"tail {row}", 5 + row)] for row in range(5)],
    "rows of one part": [[("a", 63)], [("b", 1)], [("c", 17)], []],
    "bundles": [[(f"group {r // 5}", 9), (f"tail {r}", 1 + r % 4)] for r in range(60)],
    "many parts": [[("long", 9000), (f"tail {row}", 1)] for row in range(2)],
}
WIDTHS = [(192, 128), (96, 96), (80, 80), (96, 64), (72, 120)]
# what a GPU is asked for
SERVED = [(192, 128), (96, 96), (80, 80)]


def apart(buffer: torch.Tensor) -> torch.Tensor:
    """The same rows with NaN behind each, up to where a kernel may hold columns of it."""
    width = buffer.shape[-1]
    wider = buffer.new_full((*buffer.shape[:-1], columns_for(width) + 16), NAN)
    wider[..., :width] = buffer
    return wider[..., :width]


def of_widths(
    counts: Counts,
    widths: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
    *,
    is_apart: bool = True,
    **of_problem: Any,
) -> tuple[Any, Problem]:
    """A batch with paths, the rows of Q, K and V apart."""
    paths, problem = layer_problem(
        counts, device, dtype, head_dim=widths[0], value_dim=widths[1], **of_problem
    )
    if is_apart:
        rows = {name: apart(getattr(problem, name)) for name in ("q", "k_buffer", "v_buffer")}
        problem = dataclasses.replace(problem, **rows)
    return paths, problem


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("name", BATCHES)
def test_every_kind_of_row(
    name: str, widths: tuple[int, int], device: torch.device, low_dtype: torch.dtype
) -> None:
    if device.type == "cuda" and widths not in SERVED:
        pytest.skip("CPU only")
    paths, problem = of_widths(BATCHES[name], widths, device, low_dtype)
    planned = plan_batch(paths, problem)
    out, _ = planned.check(problem)
    assert out.shape[-1] == widths[1]
    assert (out[len(paths) :] == 0).all()
    parts = planned.plan.num_parts
    assert planned.plan.num_bundles > 0 or name != "bundles"
    assert parts > 2 * len(paths) or name != "many parts"
    assert planned.buffers.partial_out.shape[-1] == widths[1]


run = st.tuples(st.integers(0, 9), st.integers(0, 150))
width = st.integers(2, 33).map(lambda eighths: 8 * eighths)


@settings(max_examples=20, deadline=None)
@given(
    nodes=st.lists(run, max_size=4),
    rows=st.lists(run, min_size=1, max_size=6),
    group=st.sampled_from([1, 3, 4, 16]),
    cap=st.sampled_from([None, 30.0]),
    has_sinks=st.booleans(),
    is_apart=st.booleans(),
    data=st.data(),
)
def test_any_forest_of_any_widths(
    device: torch.device,
    nodes: Any,
    rows: Any,
    group: int,
    cap: float | None,
    has_sinks: bool,
    is_apart: bool,
    data: Any,
) -> None:
    of_device = st.sampled_from(SERVED) if device.type == "cuda" else st.tuples(width, width)
    dtype = torch.float16 if device.type == "cpu" else torch.bfloat16
    counts, widths = tree_counts(nodes, rows), data.draw(of_device)
    paths, problem = of_widths(counts, widths, device, dtype, group=group, is_apart=is_apart)
    sinks = torch.linspace(-2, 6, 2 * group, device=device) if has_sinks else None
    problem = dataclasses.replace(problem, sinks=sinks, soft_cap=cap)
    with np.errstate(over="ignore"):  # a tanh far from zero
        plan_batch(paths, problem).check(problem)


@pytest.mark.parametrize("widths", SERVED, ids=str)
def test_a_nan_stays_with_its_row(
    widths: tuple[int, int], device: torch.device, low_dtype: torch.dtype
) -> None:
    paths, problem = of_widths(BATCHES["bundles"], widths, device, low_dtype, padding=0)
    spoiled = 17
    problem.v_buffer[problem.rows[spoiled][-1]] = NAN
    planned = plan_batch(paths, problem)
    assert planned.plan.num_bundles > 0
    out, lse = planned.attend(problem)
    exact, exact_lse = problem.exact()
    assert out[spoiled].isnan().all()
    others = [row for row in range(len(paths)) if row != spoiled]
    assert_within_low_precision_error(out[others], exact[others], problem.eager()[others])
    assert_lse_close(lse, exact_lse)


@pytest.mark.parametrize("widths", SERVED, ids=str)
def test_nothing_is_written_behind_a_row(
    widths: tuple[int, int], device: torch.device, low_dtype: torch.dtype
) -> None:
    paths, problem = of_widths(BATCHES["merged rows"], widths, device, low_dtype)
    planned = plan_batch(paths, problem)
    memory = problem.q.new_full((*problem.q.shape[:2], 2 * columns_for(widths[1])), 7.0)
    out = memory[..., : widths[1]]
    update_lengths(planned.buffers)
    tensors = (problem.q, problem.k_buffer, problem.v_buffer, out, planned.buffers)
    prefix_shared_attention(*tensors, sm_scale=problem.sm_scale, config=planned.config)
    assert_within_low_precision_error(out, problem.exact()[0], problem.eager())
    assert (memory[..., widths[1] :] == 7).all()


@pytest.mark.parametrize(
    "change",
    [
        {"k_buffer": (90, 2, 96)},
        {"v_buffer": (90, 2, 96)},
        {"v_buffer": (90, 1, 128)},
        {"v_buffer": (90, 256)},
        {"out": (3, 8, 192)},
        {"q": (3, 8, 128)},
    ],
    ids=str,
)
def test_tensors_of_other_widths_are_refused(
    change: dict[str, tuple[int, ...]], device: torch.device, low_dtype: torch.dtype
) -> None:
    paths, problem = of_widths([[("a", 40)]] * 3, (192, 128), device, low_dtype, padding=0)
    planned = plan_batch(paths, problem)
    tensors = {"q": problem.q, "k_buffer": problem.k_buffer, "v_buffer": problem.v_buffer}
    tensors["out"] = problem.empty()
    tensors |= {name: problem.q.new_zeros(shape) for name, shape in change.items()}
    with pytest.raises(ValueError, match=r"pac needs q \[rows, Hq, Dk\]"):
        prefix_shared_attention(
            *tensors.values(), planned.buffers, sm_scale=1.0, config=planned.config
        )


@pytest.mark.parametrize("key_and_value", [(96, 64), (192, 64), (208, 128), (32, 32), (128, 256)])
def test_widths_without_a_ring_are_refused_with_warp_roles(
    key_and_value: tuple[int, int],
) -> None:
    paths, problem = of_widths([[("a", 40)]], key_and_value, CPU, torch.float32)
    planned = plan_batch(paths, problem)
    config = launch_config((9, 0), SHAPE)
    tensors = (problem.q, problem.k_buffer, problem.v_buffer, problem.empty(), planned.buffers)
    with pytest.raises(ValueError, match="Dk and Dv up to 64, 128 or 256 or 192 and 128"):
        prefix_shared_attention(*tensors, sm_scale=1.0, config=config)
