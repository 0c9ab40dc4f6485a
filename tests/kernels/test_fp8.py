"""K and V in fp8: every value, every kind of task, and scales that are applied once."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import layer_problem
from planned import plan_batch

from sglang_codec import PrefixForest, PrefixSharedDecodeWrapper
from sglang_codec.attention import prefix_shared_attention, update_lengths
from sglang_codec.attention_shape import AttentionShape
from sglang_codec.kernels.fp8 import EXPONENTS, narrowed, widened
from sglang_codec.kernels.launch import launch_config
from sglang_codec.testing import (
    Counts,
    Problem,
    assert_lse_close,
    assert_within_low_precision_error,
    make_problem,
    tree_counts,
    with_slots,
)

FORMATS = pytest.mark.parametrize("kv_dtype", EXPONENTS, ids=lambda d: str(d)[13:])
BATCHES: dict[str, Counts] = {
    "merged rows": [[("prompt", 400), (f"tail {row}", 5 + row)] for row in range(5)],
    "rows of one part": [[("a", 63)], [("b", 1)], [("c", 17)], []],
    "bundles": [[(f"group {r // 5}", 9), (f"tail {r}", 3 + r % 4)] for r in range(60)],
    "many parts": [[("long", 9000), (f"tail {row}", 1)] for row in range(2)],
}
LAYERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scales": {"k_scale": 0.37, "v_scale": 2.6},
    "sinks": {"sinks": True, "v_scale": 0.1},
    "cap": {"soft_cap": 3.0, "k_scale": 1.7, "v_scale": 0.6},
}


@pytest.fixture(autouse=True)
def _nan_is_meant() -> Any:
    """The interpreter warns where an infinity or a NaN is read."""
    with np.errstate(invalid="ignore"):
        yield


@triton.jit
def _widen_kernel(bytes_ptr, out_ptr, COUNT: tl.constexpr, EXPONENT: tl.constexpr):
    at = tl.arange(0, COUNT)
    out = widened(tl.load(bytes_ptr + at), out_ptr.dtype.element_ty, EXPONENT)
    tl.store(out_ptr + at, out)


@FORMATS
@pytest.mark.parametrize("wide", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_every_value_is_exact(
    kv_dtype: torch.dtype, wide: torch.dtype, device: torch.device
) -> None:
    values = torch.arange(256, dtype=torch.uint8, device=device)
    out = torch.empty(256, dtype=wide, device=device)
    _widen_kernel[(1,)](values, out, 256, EXPONENTS[kv_dtype])
    expected = values.cpu().view(kv_dtype).double()
    assert torch.equal(out.cpu().double().nan_to_num(7e6), expected.nan_to_num(7e6))
    assert torch.equal(out.cpu().signbit()[expected == 0], torch.tensor([False, True]))


@FORMATS
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", BATCHES)
def test_every_kind_of_row(
    name: str, layer: str, kv_dtype: torch.dtype, device: torch.device, low_dtype: torch.dtype
) -> None:
    paths, problem = layer_problem(
        BATCHES[name], device, low_dtype, kv_dtype=kv_dtype, **LAYERS[layer]
    )
    planned = plan_batch(paths, problem)
    out, lse = planned.check(problem)
    assert (out[len(paths) :] == 0).all()
    assert (lse[len(paths) :] == -float("inf")).all()
    parts = planned.plan.num_parts
    assert planned.plan.num_bundles > 0 or name != "bundles"
    assert parts == 0 or name != "rows of one part"
    assert parts > len(paths) or name != "many parts"


run = st.tuples(st.integers(0, 9), st.integers(0, 150))
scale = st.floats(0.01, 4)


@settings(max_examples=15, deadline=None)
@given(
    nodes=st.lists(run, max_size=4),
    rows=st.lists(run, min_size=1, max_size=6),
    group=st.sampled_from([1, 3, 4, 8]),
    kv_dtype=st.sampled_from([*EXPONENTS]),
    of_layer=st.fixed_dictionaries({"k_scale": scale, "v_scale": scale}),
)
def test_any_forest(
    device: torch.device, nodes: Any, rows: Any, group: int, kv_dtype: torch.dtype, of_layer: Any
) -> None:
    dtype = torch.float16 if device.type == "cpu" else torch.bfloat16
    counts = tree_counts(nodes, rows)
    paths, problem = layer_problem(
        counts, device, dtype, kv_dtype=kv_dtype, group=group, **of_layer
    )
    plan_batch(paths, problem).check(problem)


@pytest.mark.parametrize("head_dim", [128, 256])
@pytest.mark.parametrize("name", ["merged rows", "bundles"])
def test_other_head_dims(
    name: str, head_dim: int, device: torch.device, low_dtype: torch.dtype
) -> None:
    paths, problem = layer_problem(
        BATCHES[name], device, low_dtype, kv_dtype=torch.float8_e4m3fn, head_dim=head_dim, group=2
    )
    plan_batch(paths, problem).check(problem)


@pytest.mark.parametrize(
    ("kv_dtype", "value"),
    [(torch.float8_e4m3fn, "nan"), (torch.float8_e5m2, "nan"), (torch.float8_e5m2, "inf")],
    ids=str,
)
def test_a_broken_token_stays_with_its_row(
    kv_dtype: torch.dtype, value: str, device: torch.device, low_dtype: torch.dtype
) -> None:
    """A bundle with a NaN in it, or an infinity that makes one, is computed again."""
    layer = LAYERS["sinks"] | {"k_scale": 0.5}
    paths, problem = layer_problem(
        BATCHES["bundles"], device, low_dtype, kv_dtype=kv_dtype, **layer
    )
    spoiled = 17
    problem.v_buffer[problem.rows[spoiled][-1]] = float(value)
    planned = plan_batch(paths, problem)
    assert planned.plan.num_bundles > 0
    out, lse = planned.attend(problem)
    exact, exact_lse = problem.exact()
    assert not out[spoiled].isfinite().any()
    others = [row for row in range(len(paths)) if row != spoiled]
    assert_within_low_precision_error(out[others], exact[others], problem.eager()[others])
    assert_lse_close(lse, exact_lse)


def test_partials_carry_the_scale_of_values(device: torch.device, low_dtype: torch.dtype) -> None:
    """The LSE does not, whoever merges."""
    paths, problem = layer_problem(
        BATCHES["merged rows"], device, low_dtype, kv_dtype=torch.float8_e4m3fn
    )
    planned = plan_batch(paths, problem)
    out, lse = planned.attend(problem)
    partials = planned.buffers.partial_out.clone()
    twice, lse_then = planned.attend(dataclasses.replace(problem, v_scale=2.0))
    torch.testing.assert_close(twice, 2 * out)
    assert torch.equal(lse_then, lse)
    assert torch.equal(planned.buffers.partial_out, 2 * partials)


def test_pages_of_more_than_one_slot(device: torch.device, low_dtype: torch.dtype) -> None:
    paths = with_slots(BATCHES["merged rows"], page_size=16)
    sizes = {"num_qo_heads": 8, "num_kv_heads": 2, "head_dim": 64}
    problem = make_problem(
        paths, **sizes, dtype=low_dtype, kv_dtype=torch.float8_e5m2, device=device, page_size=16
    )
    plan_batch(paths, problem).check(problem)


@pytest.mark.parametrize("other", [torch.float8_e4m3fnuz, torch.uint8, torch.float64], ids=str)
def test_other_dtypes_are_refused(
    other: torch.dtype, device: torch.device, low_dtype: torch.dtype
) -> None:
    paths, problem = layer_problem(
        BATCHES["rows of one part"], device, low_dtype, kv_dtype=torch.float8_e4m3fn
    )
    planned = plan_batch(paths, problem)
    k, v = problem.k_buffer, problem.v_buffer
    for change in (
        {"k_buffer": k.float().to(other), "v_buffer": v.float().to(other)},
        {"v_buffer": v.float().to(torch.float8_e5m2)},
    ):
        with pytest.raises(ValueError, match="of one dtype or K and V in fp8"):
            planned.attend(dataclasses.replace(problem, **change))


def wrapper_of(problem: Problem, **options: Any) -> PrefixSharedDecodeWrapper:
    of_problem = {"dtype": problem.q.dtype, "kv_data_type": problem.k_buffer.dtype}
    of_problem |= {"device": problem.q.device} | options
    return PrefixSharedDecodeWrapper(problem.q.shape[1], 2, problem.q.shape[2], **of_problem)


@FORMATS
def test_the_wrapper(kv_dtype: torch.dtype, device: torch.device, low_dtype: torch.dtype) -> None:
    scales = {"k_scale": 0.2, "v_scale": 3.0}
    paths, problem = layer_problem(
        BATCHES["merged rows"], device, low_dtype, kv_dtype=kv_dtype, **scales
    )
    wrapper = wrapper_of(problem)
    wrapper.plan(PrefixForest.from_paths(paths))
    tensors = (problem.q, problem.k_buffer, problem.v_buffer)
    out, lse = wrapper.run(*tensors, **scales, return_lse=True)
    exact, exact_lse = problem.exact()
    assert_within_low_precision_error(out, exact, problem.eager())
    assert_lse_close(lse, exact_lse)
    for name in scales:
        for bad in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=f"{name} = {bad} must be a finite number"):
                wrapper.run(*tensors, **{name: bad})
    for name in ("k_buffer", "v_buffer"):
        wrong = dict(zip(("q", "k_buffer", "v_buffer"), tensors, strict=True)) | {name: problem.q}
        wrong[name] = wrong[name].new_zeros(problem.k_buffer.shape)
        with pytest.raises(
            ValueError, match=f"{name} has dtype {low_dtype}, the wrapper {kv_dtype}"
        ):
            wrapper.run(**wrong)
    with pytest.raises(ValueError, match="a KV cache of float64 for queries of"):
        wrapper_of(problem, kv_data_type=torch.float64)


@triton.jit
def _narrow_kernel(in_ptr, bytes_ptr, BLOCK: tl.constexpr, EXPONENT: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(bytes_ptr + at, narrowed(tl.load(in_ptr + at).to(tl.float32), EXPONENT))


@FORMATS
@pytest.mark.parametrize("wide", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_every_number_is_narrowed_as_torch_does(
    kv_dtype: torch.dtype, wide: torch.dtype, device: torch.device
) -> None:
    """All numbers of 16 bits; of those with 32 any, and all that lie between two of fp8."""
    if wide == torch.float32:
        values = torch.arange(256, dtype=torch.uint8).view(kv_dtype).float()
        values = values[values.isfinite()].sort().values
        between = (values[1:] + values[:-1]) / 2
        step = torch.tensor(float("inf"))
        exact = torch.cat([values, between, between.nextafter(step), between.nextafter(-step)])
        drawn = torch.randint(-(2**31), 2**31, (65536 - len(exact),), dtype=torch.int32)
        given = torch.cat([exact, drawn.view(torch.float32)])
    else:
        given = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(wide)
    out = torch.empty(65536, dtype=torch.uint8, device=device)
    _narrow_kernel[(8,)](given.to(device), out, 8192, EXPONENTS[kv_dtype])
    got, expected = out.cpu().view(kv_dtype).float(), given.to(kv_dtype).float()
    # where a torch before 2.13 makes NaNs of large numbers
    limit = torch.finfo(kv_dtype).max
    expected = torch.where(expected.isnan() & ~given.isnan(), limit * given.sign(), expected)
    assert torch.equal(got.nan_to_num(7e6), expected.nan_to_num(7e6))
    numbers = ~given.isnan()  # a GPU widens every NaN to the same one
    assert torch.equal(got.signbit()[numbers], expected.signbit()[numbers])


@FORMATS
def test_a_layer_is_launched_again_with_its_own_scales(
    kv_dtype: torch.dtype, device: torch.device, low_dtype: torch.dtype
) -> None:
    """On a GPU from the second call on by a kept launch, which belongs to buffers and scales."""
    paths, problem = layer_problem(BATCHES["merged rows"], device, low_dtype, kv_dtype=kv_dtype)
    planned = plan_batch(paths, problem)
    update_lengths(planned.buffers)
    for v_scale in (0.5, 2.0, 0.5, 2.0):
        step = dataclasses.replace(problem, q=torch.randn_like(problem.q), v_scale=v_scale)
        out = torch.full_like(step.q, float("nan"))
        tensors = (step.q, step.k_buffer, step.v_buffer, out, planned.buffers)
        of_layer = {"sm_scale": step.sm_scale, "config": planned.config} | step.of_layer
        prefix_shared_attention(*tensors, **of_layer)
        assert_within_low_precision_error(out, step.exact()[0], step.eager())
    assert len(planned.buffers.launches) == (2 if device.type == "cuda" else 0)


def test_warp_roles_need_steps_ahead(device: torch.device) -> None:
    paths, problem = layer_problem(
        BATCHES["rows of one part"], device, torch.bfloat16, kv_dtype=[*EXPONENTS][0]
    )
    of_bf16 = launch_config((9, 0), AttentionShape.plain(8, 2, 64))
    planned = dataclasses.replace(plan_batch(paths, problem), config=of_bf16)
    with pytest.raises(ValueError, match="fp8 Dk as Dv and steps ahead"):
        planned.attend(problem)


@pytest.mark.parametrize(("dim", "kv_dtype"), [(64, [*EXPONENTS][0]), (128, None)])
def test_warp_roles_have_long_steps_for_64_columns_of_two_bytes_only(
    dim: int, kv_dtype: torch.dtype | None, device: torch.device
) -> None:
    paths, problem = layer_problem(
        BATCHES["rows of one part"], device, torch.bfloat16, kv_dtype=kv_dtype, head_dim=dim
    )
    narrow = launch_config((9, 0), AttentionShape.plain(8, 2, 64))
    long_steps = dataclasses.replace(narrow, ahead=4)
    planned = dataclasses.replace(plan_batch(paths, problem), config=long_steps)
    with pytest.raises(ValueError, match="no steps of 128 tokens for Dv above 64 or fp8"):
        planned.attend(problem)
