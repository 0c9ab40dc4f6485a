"""Sliding windows: each row sees its newest tokens, now and while it grows."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planned import Planned, plan_batch

from sglang_codec import PrefixSharedDecodeWrapper
from sglang_codec.attention_shape import AttentionShape
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.frugal import frugal_plan
from sglang_codec.planning.plain import plain_plan
from sglang_codec.planning.plan import PlanCapacity
from sglang_codec.testing import (
    Counts,
    Problem,
    assert_lse_close,
    make_problem,
    tree_counts,
    with_slots,
)

HEADROOM = 9
# (batch, newest tokens that a row sees)
BATCHES: dict[str, tuple[Counts, int]] = {
    "all of a run": ([[("prompt", 300), (f"tail {r}", 5 + r)] for r in range(5)], 400),
    "the end of a run": ([[("prompt", 700), (f"tail {r}", 9 + 23 * r)] for r in range(5)], 200),
    "a run behind some windows": (
        [[("run", 150), (f"tail {r}", 1 + 60 * r)] for r in range(6)],
        200,
    ),
    "runs behind all windows": (
        [[("a", 90), ("b", 130), (f"c{r // 4}", 70), (f"tail {r}", 5 + r)] for r in range(16)],
        64,
    ),
    "tails longer than the window": ([[("run", 50), (f"tail {r}", 400)] for r in range(3)], 100),
    "a tail that is split": ([[("alone", 3000)]], 2500),
    "one token": ([[("run", 40), (f"tail {r}", r)] for r in range(4)], 1),
    "bundles": ([[(f"group {r // 5}", 40), (f"tail {r}", 3 + r % 7)] for r in range(36)], 60),
    "bundles with whole runs": (
        [[("prompt", 300), (f"g{r // 3}", 9), (f"tail {r}", 3 + r % 7)] for r in range(36)],
        120,
    ),
    "tails of bundles are left": ([[(f"t{r}", 2 + r % 3)] for r in range(36)], 4),
}


def windowed(
    counts: Counts,
    window: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    group: int = 4,
    steps: int = 0,
    **of_plan: Any,
) -> tuple[Planned, Problem, torch.Tensor]:
    """A planned batch, its problem, and slots ``[B, steps]`` of tokens to come."""
    paths = with_slots([*counts, [("new", steps * len(counts))]], seed=8, spare=3)
    problem = make_problem(
        paths, num_qo_heads=group, num_kv_heads=1, head_dim=64, dtype=dtype, device=device
    )
    slots = problem.rows.pop().view(len(counts), steps).to(device)
    problem = dataclasses.replace(problem, q=problem.q[: len(counts)], window=window)
    return plan_batch(paths[: len(counts)], problem, **of_plan), problem, slots


@pytest.mark.parametrize("name", BATCHES)
def test_every_kind_of_row(name: str, device: torch.device, dtype: torch.dtype) -> None:
    counts, window = BATCHES[name]
    planned, problem, _ = windowed(counts, window, device, dtype)
    planned.check_closely(problem)
    assert planned.plan.num_bundles > 0 or "bundles" not in name


@pytest.mark.parametrize("name", BATCHES)
def test_windows_move_on_with_their_rows(
    name: str, device: torch.device, dtype: torch.dtype
) -> None:
    """No plan is made anew, and what all rows of a chunk have left is read no more."""
    counts, window = BATCHES[name]
    planned, problem, slots = windowed(
        counts, window, device, dtype, steps=HEADROOM, tail_headroom=HEADROOM
    )
    assert planned.plan.num_bundles > 0 or name != "tails of bundles are left"
    lengths = torch.tensor([len(row) for row in problem.rows], device=device)
    for step in range(HEADROOM):
        planned.append(lengths + step + 1, slots[:, step].contiguous())
        if step not in (0, HEADROOM - 1):
            continue
        rows = [torch.cat([r, slots[i, : step + 1].cpu()]) for i, r in enumerate(problem.rows)]
        # what is behind every window may be another request's by now
        seen = torch.cat([row[-window:] for row in rows])
        now = dataclasses.replace(problem, rows=rows, k_buffer=problem.k_buffer.clone())
        left = torch.ones(len(now.k_buffer), dtype=torch.bool)
        left[seen] = False
        now.k_buffer[left.to(device)] = float("nan")
        planned.check_closely(now)


run = st.tuples(st.integers(0, 9), st.integers(0, 150))


@settings(max_examples=10, deadline=None)
@given(
    nodes=st.lists(run, max_size=5),
    rows=st.lists(run, min_size=1, max_size=7),
    window=st.integers(1, 300),
    group=st.sampled_from([1, 3, 8]),
    way=st.sampled_from(["best", "frugal", "plain"]),
)
def test_any_forest_through_any_window(
    device: torch.device, nodes: Any, rows: Any, window: int, group: int, way: str
) -> None:
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    counts = tree_counts(nodes, rows)
    room = PlanCapacity(99, 10**6, 10**6, 10**6)
    ways = {
        "best": None,
        "frugal": lambda forest, spec, costs: frugal_plan(forest, spec, costs, room),
        "plain": lambda forest, spec, costs: plain_plan(forest.lengths, spec),
    }
    planned, problem, _ = windowed(
        counts, window, device, dtype, group=group, make_plan=ways[way], tail_headroom=HEADROOM
    )
    planned.check_closely(problem)


def test_a_row_that_sees_nothing_of_a_run_is_kept_from_its_values(
    device: torch.device, dtype: torch.dtype
) -> None:
    """Zero times what others see there would be NaN."""
    counts = [[("run", 900), ("short", 1)], [("run", 900), ("both", 300), ("long", 300)]]
    counts += [[("run", 900), ("both", 300), ("tail", 3)]]
    planned, problem, _ = windowed(counts, 500, device, dtype)
    for_all = (planned.plan.tasks[:, 3] == 3).any()
    assert for_all or device.type == "cuda", "the run is not read for all three"
    problem.v_buffer[problem.rows[0][:900]] = float("inf")
    out, _ = planned.attend(problem)
    exact, _ = problem.exact()
    assert out[1].isfinite().all()
    torch.testing.assert_close(out[1].double(), exact[1], atol=2e-2, rtol=2e-2)


def test_a_forest_through_a_window_tiles_what_rows_see() -> None:
    counts = BATCHES["a run behind some windows"][0]
    forest = PrefixForest.from_paths(with_slots(counts)).through_window(200).checked()
    lengths = np.array([sum(tokens for _, tokens in row) for row in counts])
    tail = forest.num_shared + np.argsort(forest.order)
    start = forest.start[tail]
    parent = forest.parent[tail]
    # four rows see the run at least in part; the others are trees of their own
    assert (parent >= 0).tolist() == [True] * 4 + [False] * 2
    assert (start[4:] == lengths[4:] - 200).all()
    assert forest.to_dict()["window"] == 200
    assert PrefixForest.from_dict(forest.to_dict()).to_dict() == forest.to_dict()
    with pytest.raises(ValueError, match="windows of 200 tokens, not 3"):
        forest.through_window(3)


@pytest.mark.parametrize("left", [0, 70])
def test_the_wrapper_takes_windows_plan_by_plan(
    left: int, device: torch.device, dtype: torch.dtype
) -> None:
    """`window_left` counts the tokens before a row's own, and -1 is for no window."""
    paths = with_slots(BATCHES["the end of a run"][0], seed=2)
    problem = make_problem(
        paths, num_qo_heads=4, num_kv_heads=1, head_dim=64, dtype=dtype, device=device
    )
    wrapper = PrefixSharedDecodeWrapper(4, 1, 64, dtype=dtype, device=device)
    tensors = problem.q, problem.k_buffer, problem.v_buffer
    for window in (0, left + 1, 0):
        forest = PrefixForest.from_paths(paths)
        plan = wrapper.plan(forest, sm_scale=problem.sm_scale, window_left=window - 1)
        assert plan.kv_tokens_stock == sum(len(row[-window:]) for row in problem.rows)
        out, lse = wrapper.run(*tensors, return_lse=True)
        exact, exact_lse = dataclasses.replace(problem, window=window).exact()
        close = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(out.double(), exact, atol=close, rtol=close)
        assert_lse_close(lse, exact_lse)
    with pytest.raises(ValueError, match="window_left = -2 must be 0 or more, or -1"):
        wrapper.plan(forest, window_left=-2)


def test_a_window_needs_lengths(device: torch.device) -> None:
    planned, problem, _ = windowed([[("a", 9)]], 4, device, torch.float32)
    planned.buffers.row_lengths = planned.buffers.row_lengths.long()
    with (
        mock.patch("planned.update_lengths"),
        pytest.raises(ValueError, match="needs .*lengths, int32"),
    ):
        planned.attend(problem)
    shape = AttentionShape.plain(8, 2, 64)
    assert "window of 5" in str(dataclasses.replace(shape, window=4))
