"""The whole operator against fp64: `PrefixSharedDecodeWrapper.plan`, then `run`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sglang_codec import PrefixForest, PrefixSharedDecodeWrapper
from sglang_codec import wrapper as wrapper_module
from sglang_codec.attention import prefix_shared_attention
from sglang_codec.planning.plan import PlanCapacity, PlanCapacityError
from sglang_codec.testing import (
    Counts,
    Paths,
    Problem,
    assert_lse_close,
    assert_within_low_precision_error,
    kv_indices_of,
    make_problem,
    random_counts,
    with_slots,
)

BATCHES: dict[str, Counts] = {
    "one token": [[("a", 1)]],
    "odd private rows": [[(f"row {tokens}", tokens)] for tokens in (1, 17, 63, 200)],
    "few-shot": [[("prompt", 200), (f"question {r}", tail)] for r, tail in enumerate((1, 17, 63))],
    "two levels": [
        [("root", 130), (f"branch {r // 2}", 65), (f"leaf {r}", 1 + 9 * r)] for r in range(4)
    ],
    "equal rows": [[("all", 63)]] * 3,
    "a row inside another": [[("a", 100)], [("a", 100), ("b", 17)], [("a", 100), ("b", 17)]],
    "a short run that is absorbed": [[("few", 3), (f"tail {r}", 20 + r)] for r in range(3)],
    "rows without tokens": [[], [("a", 17)], []],
    "two roots, out of order": [
        [("x", 40), ("p", 5)],
        [("y", 33)],
        [("x", 40), ("q", 1)],
        [("y", 33), ("r", 17)],
    ],
    "nothing at all": [[], []],
    "no rows": [],
}


def wrapper_for(problem: Problem, num_kv_heads: int, **options: Any) -> PrefixSharedDecodeWrapper:
    q = problem.q
    widths = {"head_dim_qk": q.shape[2], "head_dim_vo": problem.v_buffer.shape[-1]}
    where = {"dtype": q.dtype, "device": q.device}
    return PrefixSharedDecodeWrapper(q.shape[1], num_kv_heads, **widths, **where, **options)


def check(
    wrapper: PrefixSharedDecodeWrapper, problem: Problem, forest: PrefixForest
) -> torch.Tensor:
    """Plan, run and compare output and LSE with fp64; returns the output."""
    wrapper.plan(forest, sm_scale=problem.sm_scale, logits_soft_cap=problem.soft_cap)
    poisoned = problem.empty()
    tensors = (problem.q, problem.k_buffer, problem.v_buffer)
    out, lse = wrapper.run(*tensors, sinks=problem.sinks, out=poisoned, return_lse=True)
    assert out is poisoned
    exact, exact_lse = problem.exact()
    assert_within_low_precision_error(out, exact, problem.eager())
    assert_lse_close(lse, exact_lse)
    return out


def solve(
    counts: Counts, device: torch.device, dtype: torch.dtype, *, group: int = 4, **shape: int
) -> None:
    num_kv_heads, head_dim = shape.pop("num_kv_heads", 1), shape.pop("head_dim", 64)
    page_size = shape.get("page_size", 1)
    paths = with_slots(counts, seed=5, spare=30, page_size=page_size)
    problem = make_problem(
        paths,
        num_qo_heads=group * num_kv_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        device=device,
        **shape,
    )
    check(wrapper_for(problem, num_kv_heads), problem, PrefixForest.from_paths(paths))


@pytest.mark.parametrize("name", BATCHES)
def test_every_kind_of_batch(name: str, device: torch.device, dtype: torch.dtype) -> None:
    solve(BATCHES[name], device, dtype)


@pytest.mark.parametrize("group", [1, 2, 3, 4, 7, 8, 16])
def test_every_gqa_group(group: int, device: torch.device, dtype: torch.dtype) -> None:
    solve(BATCHES["few-shot"], device, dtype, group=group)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("group", [1, 4])
def test_small_groups_weigh_as_exactly_as_they_are_asked_to(
    group: int, device: torch.device, dtype: torch.dtype
) -> None:
    paths = with_slots(BATCHES["few-shot"], seed=5, spare=30)
    shape = {"num_qo_heads": 2 * group, "num_kv_heads": 2, "head_dim": 64}
    problem = make_problem(paths, **shape, dtype=dtype, device=device)
    forest = PrefixForest.from_paths(paths)
    exact, rounded = (
        check(wrapper_for(problem, 2, exact_weights=is_exact), problem, forest).double()
        for is_exact in (True, False)
    )
    truth, _ = problem.exact()
    if group == 4:
        assert torch.equal(exact, rounded)
    else:
        assert (exact - truth).norm() < (rounded - truth).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", [32, 64, 128, 256])
def test_every_dtype_and_head_dim(head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
    if device.type == "cuda" and (head_dim == 32 or dtype == torch.float32):
        pytest.skip("CPU only")
    solve(BATCHES["two levels"], device, dtype, head_dim=head_dim, num_kv_heads=2, group=2)


@pytest.mark.parametrize("widths", [(192, 128), (96, 96), (80, 80)], ids=str)
@pytest.mark.parametrize("page_size", [1, 4])
def test_widths_of_keys_and_values(
    page_size: int, widths: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> None:
    key_dim, value_dim = widths
    shape = {"head_dim": key_dim, "value_dim": value_dim, "page_size": page_size, "padding": 1}
    solve(BATCHES["two levels"], device, dtype, num_kv_heads=2, **shape)
    _, problem = few_shot(device, dtype)
    for name, width in {"q": key_dim, "k_buffer": key_dim, "v_buffer": value_dim}.items():
        wide = getattr(problem, name).repeat(1, 1, 3)[..., :width]
        problem = dataclasses.replace(problem, **{name: wide.contiguous()})
    wrapper = wrapper_for(problem, 1)
    wrapper.plan(equal_rows(3))
    tensors = (problem.q, problem.k_buffer, problem.v_buffer)
    assert wrapper.run(*tensors).shape == (3, 4, value_dim)
    with pytest.raises(ValueError, match=rf"out has shape .*, expected \(3, 4, {value_dim}\)"):
        wrapper.run(*tensors, out=problem.q.new_empty(3, 4, 64))


@pytest.mark.parametrize("name", ["few-shot", "two levels", "rows without tokens"])
def test_sinks_and_a_cap(name: str, device: torch.device) -> None:
    dtype = torch.float16 if device.type == "cpu" else torch.bfloat16
    paths = with_slots(BATCHES[name], seed=5, spare=30)
    problem = make_problem(
        paths, num_qo_heads=4, num_kv_heads=2, head_dim=64, dtype=dtype, device=device, padding=1
    )
    wrapper, forest = wrapper_for(problem, 2), PrefixForest.from_paths(paths)
    sinks = torch.tensor([1.0, 5.0, -float("inf"), -2.0], device=device)
    for of_layer in ({"sinks": sinks}, {"soft_cap": 1.5}, {"sinks": sinks.to(dtype)}, {}):
        check(wrapper, dataclasses.replace(problem, **of_layer), forest)


@pytest.mark.parametrize(
    ("sinks", "words"),
    [
        (torch.zeros(2), r"shape \(2,\).*expected \[4\]"),
        (torch.zeros(1, 4), r"shape \(1, 4\).*expected \[4\]"),
        (torch.zeros(4, dtype=torch.int64), "torch.int64.* of floats"),
        (torch.zeros(8)[::2], r"strides \(2,\).*contiguous"),
        (torch.zeros(4, device="meta"), "sinks is on meta"),
    ],
    ids=["heads", "dimensions", "dtype", "strides", "device"],
)
def test_sinks_that_do_not_match_are_refused(
    sinks: torch.Tensor, words: str, device: torch.device, dtype: torch.dtype
) -> None:
    paths, problem = few_shot(device, dtype)
    wrapper = wrapper_for(problem, 1)
    wrapper.plan(PrefixForest.from_paths(paths))
    if sinks.device.type == "cpu" and sinks.is_contiguous():
        sinks = sinks.to(device)
    with pytest.raises(ValueError, match=words):
        wrapper.run(problem.q, problem.k_buffer, problem.v_buffer, sinks=sinks)


@pytest.mark.parametrize("cap", [-1.0, float("nan"), float("inf")])
def test_a_cap_that_is_none_is_refused(
    cap: float, device: torch.device, dtype: torch.dtype
) -> None:
    paths, problem = few_shot(device, dtype)
    with pytest.raises(ValueError, match=f"logits_soft_cap = {cap} must be a finite number"):
        wrapper_for(problem, 1).plan(PrefixForest.from_paths(paths), logits_soft_cap=cap)


@pytest.mark.parametrize("page_size", [1, 16])
def test_pages(page_size: int, device: torch.device, dtype: torch.dtype) -> None:
    solve(BATCHES["few-shot"], device, dtype, page_size=page_size, num_kv_heads=2)


def test_more_readers_than_the_largest_tile_holds(device: torch.device, dtype: torch.dtype) -> None:
    counts = [[("prompt", 70), (f"tail {row}", 3)] for row in range(9)]
    solve(counts, device, dtype, group=16)


def test_a_long_row_is_split_and_merged(device: torch.device, dtype: torch.dtype) -> None:
    solve([[("alone", 1100)], [("other", 40)]], device, dtype)


@pytest.mark.parametrize("seed", range(4))
def test_random_forests(seed: int, device: torch.device, dtype: torch.dtype) -> None:
    counts = random_counts(seed, batch=6, nodes=5, longest_run=140, longest_tail=40)
    solve(counts, device, dtype, group=2, seed=seed)


@pytest.mark.parametrize("name", ["few-shot", "no rows"])
def test_padding_rows_are_zero_with_lse_minus_infinity(
    name: str, device: torch.device, dtype: torch.dtype
) -> None:
    solve(BATCHES[name], device, dtype, padding=3)


def test_a_forest_found_in_the_slots_gives_the_same_result(
    device: torch.device, dtype: torch.dtype
) -> None:
    paths, problem = few_shot(device, dtype)
    wrapper = wrapper_for(problem, 1)
    named = check(wrapper, problem, PrefixForest.from_paths(paths))
    found = check(wrapper, problem, PrefixForest.from_kv_indices(*kv_indices_of(paths)))
    assert torch.equal(named, found)


def test_the_order_of_the_batch_does_not_matter(device: torch.device, dtype: torch.dtype) -> None:
    paths, problem = few_shot(device, dtype)
    wrapper = wrapper_for(problem, 1)
    out = check(wrapper, problem, PrefixForest.from_paths(paths))
    order = [2, 0, 1]
    shuffled = dataclasses.replace(
        problem, q=problem.q[order].clone(), rows=[problem.rows[row] for row in order]
    )
    again = check(wrapper, shuffled, PrefixForest.from_paths([paths[row] for row in order]))
    # the sums run in another order, and that is all
    torch.testing.assert_close(again, out[order], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["few-shot", "odd private rows"])
def test_strided_tensors(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Queries, outputs and caches may be views, as in a fused QKV tensor, each with its strides.

    Rows of several parts are written by POR, the others by PAC.
    """
    paths, problem = few_shot(device, dtype, name, num_kv_heads=2)

    def inside(tensor: torch.Tensor, heads: int, parts: int) -> torch.Tensor:
        wider = torch.full((len(tensor), heads, parts, tensor.shape[-1]), float("nan"))
        view = wider.to(tensor)[:, : tensor.shape[1], 1]
        view.copy_(tensor)
        return view

    strided = dataclasses.replace(
        problem,
        q=inside(problem.q, 5, 3),
        k_buffer=inside(problem.k_buffer, 3, 4),
        v_buffer=inside(problem.v_buffer, 3, 2),
    )
    tensors = (strided.q, strided.k_buffer, strided.v_buffer)
    assert len({stride for tensor in tensors for stride in tensor.stride()[:2]}) == 6
    wrapper = wrapper_for(problem, 2)
    out = check(wrapper, strided, PrefixForest.from_paths(paths))
    narrow = inside(out, 9, 2)
    wrapper.run(*tensors, out=narrow.fill_(float("nan")))
    assert torch.equal(narrow, out)


def test_output_and_scale_have_defaults(device: torch.device, dtype: torch.dtype) -> None:
    paths, problem = few_shot(device, dtype)
    assert problem.sm_scale == pytest.approx(1 / math.sqrt(64))
    wrapper = wrapper_for(problem, 1)
    wrapper.plan(PrefixForest.from_paths(paths))
    out = wrapper.run(problem.q, problem.k_buffer, problem.v_buffer)
    assert_within_low_precision_error(out, problem.exact()[0], problem.eager())


def test_the_scale_is_used(device: torch.device, dtype: torch.dtype) -> None:
    paths, problem = few_shot(device, dtype)
    check(
        wrapper_for(problem, 1),
        dataclasses.replace(problem, sm_scale=0.31),
        PrefixForest.from_paths(paths),
    )


def test_a_wrapper_is_planned_again_and_again(device: torch.device, dtype: torch.dtype) -> None:
    """Larger, smaller and empty batches in turn leave nothing behind."""
    wrapper = None
    for seed, name in enumerate(("few-shot", "two levels", "nothing at all", "one token")):
        paths = with_slots(BATCHES[name], seed=seed)
        problem = make_problem(
            paths,
            num_qo_heads=4,
            num_kv_heads=1,
            head_dim=64,
            dtype=dtype,
            device=device,
            padding=1,
            seed=seed,
        )
        wrapper = wrapper or wrapper_for(problem, 1)
        check(wrapper, problem, PrefixForest.from_paths(paths))
        assert wrapper.launch_plan.batch == len(paths)


def test_buffers_grow_with_the_plan(device: torch.device, dtype: torch.dtype) -> None:
    wrapper = PrefixSharedDecodeWrapper(4, 1, 64, dtype=dtype, device=device)
    for tokens in (10, 6000):
        plan = wrapper.plan(PrefixForest.from_paths([[("a", np.arange(tokens))]] * 70))
        assert plan is wrapper.launch_plan
        assert plan.kv_entries >= tokens


def test_a_fixed_capacity_is_kept(device: torch.device, dtype: torch.dtype) -> None:
    paths, problem = few_shot(device, dtype)
    capacity = PlanCapacity(rows=4, tasks=16, parts=16, kv_index=300)
    wrapper = wrapper_for(problem, 1, capacity=capacity)
    check(wrapper, problem, PrefixForest.from_paths(paths))
    five = PrefixForest.from_paths([[(row, [row])] for row in range(5)])
    with pytest.raises(PlanCapacityError, match="needs 5 rows but the buffers hold 4"):
        wrapper.plan(five)
    long = PrefixForest.from_paths([[("long", np.arange(304))]])
    with pytest.raises(PlanCapacityError, match="needs 304 kv_index but the buffers hold 300"):
        wrapper.plan(long)
    # a refused plan changes nothing
    out = wrapper.run(problem.q, problem.k_buffer, problem.v_buffer)
    assert_within_low_precision_error(out, problem.exact()[0], problem.eager())


def test_padding_may_exceed_what_the_buffers_hold(device: torch.device, dtype: torch.dtype) -> None:
    paths, problem = few_shot(device, dtype, padding=70)
    capacity = PlanCapacity(rows=3, tasks=16, parts=16, kv_index=300)
    check(wrapper_for(problem, 1, capacity=capacity), problem, PrefixForest.from_paths(paths))


def test_running_before_planning(device: torch.device, dtype: torch.dtype) -> None:
    _, problem = few_shot(device, dtype)
    with pytest.raises(RuntimeError, match=r"call plan\(forest\)"):
        wrapper_for(problem, 1).run(problem.q, problem.k_buffer, problem.v_buffer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": (3, 4, 32)}, r"q has shape \(3, 4, 32\), expected \[B, 4, 64\]"),
        ({"q": (3, 256)}, r"q has shape \(3, 256\)"),
        ({"q": (2, 4, 64)}, "q has 2 rows, but the plan is for 3; plan again"),
        ({"k_buffer": (300, 2, 64)}, r"k_buffer has shape .* expected \[num_slots, 1, 64\]"),
        ({"v_buffer": (300, 1, 128)}, "v_buffer has shape"),
        ({"v_buffer": (300, 64)}, "v_buffer has shape"),
        ({"k_buffer": (9, 1, 64)}, "k_buffer has 9 slots, but the plan uses slot"),
        ({"out": (4, 4, 64)}, r"out has shape \(4, 4, 64\), expected \(3, 4, 64\)"),
    ],
)
def test_tensors_of_other_shapes_are_refused(
    change: dict[str, tuple[int, ...]], message: str, device: torch.device, dtype: torch.dtype
) -> None:
    paths, problem = few_shot(device, dtype)
    wrapper = wrapper_for(problem, 1)
    wrapper.plan(PrefixForest.from_paths(paths))
    tensors = {"q": problem.q, "k_buffer": problem.k_buffer, "v_buffer": problem.v_buffer}
    for name, shape in change.items():
        tensors[name] = torch.zeros(shape, dtype=dtype, device=device)
    with pytest.raises(ValueError, match=message):
        wrapper.run(**tensors)


@pytest.mark.parametrize("name", ["q", "k_buffer", "v_buffer", "out"])
def test_tensors_of_another_dtype_device_or_layout_are_refused(
    name: str, device: torch.device, dtype: torch.dtype
) -> None:
    paths, problem = few_shot(device, dtype)
    wrapper = wrapper_for(problem, 1)
    wrapper.plan(PrefixForest.from_paths(paths))
    tensors = {
        "q": problem.q,
        "k_buffer": problem.k_buffer,
        "v_buffer": problem.v_buffer,
        "out": torch.empty_like(problem.q),
    }
    good = tensors[name]
    with pytest.raises(ValueError, match=f"{name} has dtype torch.float64"):
        wrapper.run(**{**tensors, name: good.double()})
    with pytest.raises(ValueError, match=f"{name} is on meta"):
        wrapper.run(**{**tensors, name: good.to("meta")})
    every_second = torch.zeros(*good.shape[:-1], 128, dtype=dtype, device=device)[..., ::2]
    with pytest.raises(ValueError, match=f"{name} must be contiguous in its last dimension"):
        wrapper.run(**{**tensors, name: every_second})


@pytest.mark.parametrize(
    ("heads", "head_dim", "message"),
    [
        ((6, 4), 64, "6 query heads are no multiple of 4 KV heads"),
        ((4, 0), 64, "no multiple of 0 KV heads"),
        ((17, 1), 64, "GQA group of 17, the limit is 16"),
        ((4, 1), 100, "head dim 100"),
        ((4, 1), 8, "head dim 8"),
    ],
)
def test_unsupported_shapes_are_refused(
    heads: tuple[int, int], head_dim: int, message: str, device: torch.device, dtype: torch.dtype
) -> None:
    with pytest.raises(ValueError, match=message):
        PrefixSharedDecodeWrapper(*heads, head_dim, dtype=dtype, device=device)


def test_unsupported_dtypes_are_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="dtype float64, supported are"):
        PrefixSharedDecodeWrapper(4, 1, 64, dtype=torch.float64, device=device)


def test_an_output_that_is_written_before_it_is_read_is_refused(
    device: torch.device, dtype: torch.dtype
) -> None:
    paths, problem = few_shot(device, dtype)
    wrapper = wrapper_for(problem, 1)
    wrapper.plan(PrefixForest.from_paths(paths))
    run = (problem.q, problem.k_buffer, problem.v_buffer)
    with pytest.raises(ValueError, match="out is the memory of q"):
        wrapper.run(*run, out=problem.q)
    with pytest.raises(ValueError, match="its rows or heads are one memory"):
        wrapper.run(*run, out=problem.q[:1].clone().expand(3, -1, -1))


def equal_rows(rows: int, slots: range = range(90)) -> PrefixForest:
    return PrefixForest.from_paths([[("shared", list(slots)), (r, [r])] for r in range(rows)])


@pytest.fixture
def captured(
    device: torch.device, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., PrefixSharedDecodeWrapper]:
    """Makes a wrapper whose calls, one for each ``(rows, K slots, V slots)``, count as captured."""

    def make(*calls: tuple[int, int, int]) -> PrefixSharedDecodeWrapper:
        wrapper = PrefixSharedDecodeWrapper(2, 1, 64, dtype=dtype, device=device)
        wrapper.plan(equal_rows(min(rows for rows, *_ in calls)))
        with monkeypatch.context() as patch:
            patch.setattr(wrapper_module, "_is_capturing", lambda _: True)
            for rows, *slots in calls:
                q = torch.zeros(rows, 2, 64, dtype=dtype, device=device)
                wrapper.run(q, *(q.new_zeros(n, 1, 64) for n in slots))
        return wrapper

    return make


@pytest.mark.parametrize(
    ("calls", "rows", "slots"),
    [
        ([(4, 150, 150)], 4, 150),
        ([(4, 150, 120)], 4, 120),
        ([(6, 150, 99), (4, 300, 300), (5, 200, 200)], 4, 99),
        # more rows than were planned then: a padded batch
        ([(9, 100, 100)], 9, 100),
    ],
)
def test_the_smallest_captured_call_limits_later_plans(
    calls: list[tuple[int, int, int]], rows: int, slots: int, captured: Callable
) -> None:
    wrapper = captured(*calls)
    for forest in (
        equal_rows(rows),
        equal_rows(0),
        equal_rows(2, range(slots - 1, slots)),
        PrefixForest.from_kv_indices([0], []),
    ):
        kept = wrapper.plan(forest)
    for forest, message in (
        (equal_rows(rows + 1), rf"{rows + 1} rows, but .* with a q of {rows}; use a wrapper"),
        (equal_rows(2, range(slots, slots + 1)), f"slot {slots}, but .* of {slots} slots; use a"),
        (equal_rows(40), "40 rows"),
        (equal_rows(1, range(10**6, 10**6 + 5)), "slot 1000004"),
    ):
        with pytest.raises(ValueError, match=message):
            wrapper.plan(forest)
        assert wrapper.launch_plan is kept


def test_an_eager_call_limits_nothing(device: torch.device, dtype: torch.dtype) -> None:
    wrapper = PrefixSharedDecodeWrapper(2, 1, 64, dtype=dtype, device=device)
    wrapper.plan(equal_rows(2))
    q = torch.zeros(2, 2, 64, dtype=dtype, device=device)
    wrapper.run(q, q.new_zeros(100, 1, 64), q.new_zeros(100, 1, 64))
    assert wrapper.plan(equal_rows(200, range(7000, 7090))).batch == 200


def test_what_a_captured_call_replays_stays_within_its_tensors(
    captured: Callable, device: torch.device, dtype: torch.dtype
) -> None:
    """A replay is the same launches: whatever plan was accepted, nothing else is written."""
    wrapper = captured((4, 100, 100))
    memory = torch.full((40, 2, 64), 7.0, dtype=dtype, device=device)
    kv = torch.zeros(100, 1, 64, dtype=dtype, device=device)
    for rows in (4, 0, 3, 17, 40):
        memory.fill_(7)
        try:
            wrapper.plan(equal_rows(rows))
        except ValueError:
            assert rows > 4
        q, out = torch.ones_like(memory)[:4], memory[:4]
        prefix_shared_attention(
            q, kv, kv, out, wrapper._buffers, sm_scale=0.125, config=wrapper.config
        )
        assert (memory[:4] == 0).all()
        assert (memory[4:] == 7).all()


def test_bad_plans_are_refused(device: torch.device, dtype: torch.dtype) -> None:
    paths, problem = few_shot(device, dtype)
    wrapper = wrapper_for(problem, 1)
    forest = PrefixForest.from_paths(paths)
    with pytest.raises(ValueError, match="sm_scale = nan must be a finite number greater than 0"):
        wrapper.plan(forest, sm_scale=float("nan"))
    with pytest.raises(ValueError, match="this forest has no KV slots"):
        wrapper.plan(PrefixForest.from_dict(forest.to_dict()))
    negative = dataclasses.replace(forest, kv_slots=forest.kv_slots - 1000)
    with pytest.raises(ValueError, match=r"KV slots must lie in \[0, 2\^31\), got -1000"):
        wrapper.plan(negative)
    assert wrapper.launch_plan is None


def few_shot(
    device: torch.device,
    dtype: torch.dtype,
    name: str = "few-shot",
    *,
    num_kv_heads: int = 1,
    padding: int = 0,
) -> tuple[Paths, Problem]:
    paths = with_slots(BATCHES[name], seed=9)
    return paths, make_problem(
        paths,
        num_qo_heads=4,
        num_kv_heads=num_kv_heads,
        head_dim=64,
        dtype=dtype,
        device=device,
        padding=padding,
    )
