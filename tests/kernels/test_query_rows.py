"""Several query rows of each request, each seeing all up to its own token, now and as rows grow."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planned import plan_batch, verified

from sglang_codec import PrefixForest, PrefixSharedDecodeWrapper
from sglang_codec.attention_shape import AttentionShape
from sglang_codec.kernels.kv_index import append_slots
from sglang_codec.planning.frugal import frugal_plan
from sglang_codec.planning.inputs import Cut
from sglang_codec.planning.plain import plain_plan
from sglang_codec.planning.plan import PlanCapacity, PlanCapacityError
from sglang_codec.planning.planner import make_plan
from sglang_codec.shape_support import why_unsupported
from sglang_codec.testing import (
    Counts,
    Paths,
    Problem,
    assert_lse_close,
    make_problem,
    tree_counts,
    with_slots,
)

HEADROOM = 10
BATCHES: dict[str, Counts] = {
    "few-shot": [[("prompt", 150), (f"tail {r}", 8 + 23 * r)] for r in range(4)],
    "two levels": [
        [("root", 130), (f"branch {r // 3}", 65), (f"leaf {r}", 9 + 9 * r)] for r in range(7)
    ],
    "a tail that is split": [[("alone", 2300)]],
    "the newest tokens lie in two chunks": [[("alone", 514)], [("other", 257)]],
    "private": [[("a", 127)], [("b", 8)]],
    "absorbed": [[("few", 3), (f"tail {r}", 30)] for r in range(3)],
    "bundles": [[("prompt", 150), (f"g{r // 3}", 9), (f"tail {r}", 8 + r % 4)] for r in range(16)],
    "more requests than a tile holds": [[("p", 200), (f"t{r}", 8 + r % 3)] for r in range(21)],
}
ROOM = PlanCapacity(99, 10**6, 10**6, 10**6)
PAGES, PLAIN = "pages", "plain"
WAYS: dict[str, Any] = {
    "best": None,
    PAGES: lambda forest, spec, costs: make_plan(forest, spec, costs, ROOM, Cut("pages", 256)),
    "frugal": lambda forest, spec, costs: frugal_plan(forest, spec, costs, ROOM),
    PLAIN: lambda forest, spec, costs: plain_plan(forest.lengths, spec),
}


def problem_of(
    paths: Paths, query_rows: int, group: int, dtype: torch.dtype, device: torch.device
) -> Problem:
    return make_problem(
        paths,
        num_qo_heads=2 * group,
        num_kv_heads=2,
        head_dim=32 if device.type == "cpu" else 64,
        dtype=dtype,
        device=device,
        query_rows=query_rows,
    )


@pytest.mark.parametrize(("query_rows", "group"), [(2, 1), (3, 5), (4, 16)])
@pytest.mark.parametrize("name", BATCHES)
def test_every_kind_of_row(
    name: str, query_rows: int, group: int, device: torch.device, dtype: torch.dtype
) -> None:
    paths = with_slots(BATCHES[name], seed=8, spare=3)
    problem = problem_of(paths, query_rows, group, dtype, device)
    planned = plan_batch(paths, problem, make_plan=WAYS[PAGES if "chunks" in name else "best"])
    planned.check_closely(problem)
    assert planned.plan.num_parts > 0 or not ("chunks" in name or "split" in name)
    if device.type == "cpu" and name == "bundles" and 2 * query_rows * group <= 32:
        assert planned.plan.num_bundles > 0


run = st.tuples(st.integers(0, 9), st.integers(0, 150))


@settings(max_examples=12, deadline=None)
@given(
    nodes=st.lists(run, max_size=5),
    rows=st.lists(run, min_size=1, max_size=6),
    query_rows=st.integers(1, 8),
    group=st.sampled_from([1, 3, 5, 8]),
    way=st.sampled_from(list(WAYS)),
)
def test_any_forest(
    device: torch.device, nodes: Any, rows: Any, query_rows: int, group: int, way: str
) -> None:
    """Rows that end within a shared run, or have fewer tokens than query rows, too."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    paths = with_slots(tree_counts(nodes, rows), seed=8, spare=3)
    problem = problem_of(paths, query_rows, group, dtype, device)
    planned = plan_batch(paths, problem, make_plan=WAYS[way], tail_headroom=HEADROOM)
    planned.check_closely(problem)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *(("few-shot", way) for way in WAYS),
        *(("the newest tokens lie in two chunks", way) for way in (PAGES, PLAIN)),
        ("bundles", "best"),
    ],
)
@pytest.mark.parametrize("query_rows", [2, 5])
def test_a_plan_lives_while_drafts_are_accepted_or_not(
    query_rows: int, name: str, way: str, device: torch.device, dtype: torch.dtype
) -> None:
    """Each row keeps one to all of its drafts in a step; the others' slots are another's then."""
    counts, rng = BATCHES[name], np.random.default_rng(3)
    batch, steps = len(counts), HEADROOM // query_rows
    paths = with_slots([*counts, [("new", steps * batch * query_rows)]], seed=8)
    problem = problem_of(paths, query_rows, 4, dtype, device)
    slots = problem.rows.pop().view(steps, batch, query_rows)
    problem = dataclasses.replace(problem, q=problem.q[: batch * query_rows])
    of_plan = {"tail_headroom": HEADROOM, "spare_rows": 2, "make_plan": WAYS[way]}
    planned = plan_batch(paths[:batch], problem, **of_plan)
    if device.type == "cpu":
        assert way != PAGES or planned.plan.num_tasks > batch
        assert (planned.plan.num_bundles > 0) == (name == "bundles" and query_rows == 2)
    rows = problem.rows
    for step in range(steps):
        kept = rng.integers(0 if step == 0 else 1, query_rows + 1, batch)
        rows = verified(rows, kept, slots[step])
        lengths = torch.tensor([len(row) for row in rows], device=device)
        planned.append(lengths, slots[step].flatten().to(device))
        if step not in (0, steps - 1):
            continue
        now = dataclasses.replace(problem, rows=rows, v_buffer=problem.v_buffer.clone())
        is_gone = torch.ones(len(now.v_buffer), dtype=torch.bool)
        is_gone[torch.cat(rows)] = False
        now.v_buffer[is_gone.to(device)] = float("nan")
        planned.check_closely(now)


def test_a_nan_in_a_bundle_stays_with_those_who_see_it(
    device: torch.device, dtype: torch.dtype
) -> None:
    paths = with_slots(BATCHES["bundles"], seed=8)
    problem = problem_of(paths, 3, 3, dtype, device)
    planned = plan_batch(paths, problem)
    (spoiled,) = planned.plan.order[planned.plan.tasks[-1, 2]][None].tolist()
    assert planned.plan.num_bundles > 0
    problem.v_buffer[problem.rows[spoiled][-1:].to(device)] = float("nan")
    out, _ = planned.attend(problem)
    assert out[3 * spoiled + 2].isnan().all()
    others = torch.arange(len(out)) != 3 * spoiled + 2
    exact, _ = problem.exact()
    close = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out[others].double(), exact[others], atol=close, rtol=close)


def test_a_plan_may_be_longer_than_its_rows(device: torch.device, dtype: torch.dtype) -> None:
    """The host knows what was accepted later than the device: nothing behind the end is read."""
    paths = with_slots(BATCHES["the newest tokens lie in two chunks"], seed=8)
    problem = problem_of(paths, 4, 3, dtype, device)
    planned = plan_batch(paths, problem, tail_headroom=HEADROOM, make_plan=WAYS[PAGES])
    for shorter in (1, 4, 130):
        rows = [row[: len(row) - shorter] for row in problem.rows]
        for row in problem.rows:
            problem.v_buffer[row[-shorter:].to(device)] = float("nan")
        lengths = [len(row) for row in rows]
        planned.buffers.row_lengths[: len(rows)] = torch.tensor(lengths, device=device)
        planned.check_closely(dataclasses.replace(problem, rows=rows))


def test_slots_of_all_query_rows_are_written_and_no_others(device: torch.device) -> None:
    batch, query_rows = 5, 3
    memory = torch.full((1000,), -7, dtype=torch.int32, device=device)
    row_lengths, plan, kv_index = memory[:batch], memory[300:600], memory[600:700]
    plan[8 : 8 + batch] = torch.tensor([0, 20, -1, 40, 60], dtype=torch.int32)
    expected = memory.clone()
    # a row without a tail, one shorter than its query rows, and two of padding
    lengths = torch.tensor([3, 10, 5, 2, 9, 1, 1], device=device)
    slots = torch.arange(len(lengths) * query_rows, device=device) + 100
    expected[:batch] = lengths[:batch]
    expected[600:603] = slots[:3].int()
    expected[627:630] = slots[3:6].int()
    expected[640:642] = slots[10:12].int()
    expected[666:669] = slots[12:15].int()
    how = {"append_base_offset": 8, "query_rows": query_rows}
    append_slots(kv_index, row_lengths, plan, lengths, slots, **how)
    assert torch.equal(memory, expected)
    with pytest.raises(ValueError, match=r"a slot of every row \(3 of each\)"):
        append_slots(kv_index, row_lengths, plan, lengths, slots[:14], **how)


SINKS = torch.randn(6, generator=torch.Generator().manual_seed(5)) + 2
LAYERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of its problem, and of its tensors
    "plain": ({}, {}),
    "sinks and a cap": ({"sinks": SINKS, "soft_cap": 20.0}, {}),
    "fp8": ({"k_scale": 0.5, "v_scale": 0.25}, {"kv_dtype": torch.float8_e4m3fn}),
    "80 columns": ({}, {"head_dim": 80}),
}


@pytest.mark.parametrize("is_fixed", [False, True], ids=["growing", "fixed"])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_wrapper_takes_query_rows_plan_by_plan(
    layer: str, is_fixed: bool, device: torch.device, dtype: torch.dtype
) -> None:
    """With padding, and queries that are a part of wider rows, as a model has them."""
    of_problem, made = LAYERS[layer]
    paths = with_slots([[("prompt", 200), (f"tail {r}", 6 + 19 * r)] for r in range(3)], seed=2)
    of_tensors = {"num_qo_heads": 6, "num_kv_heads": 2, "head_dim": 64, "dtype": dtype} | made
    wrapper = PrefixSharedDecodeWrapper(
        6,
        2,
        of_tensors["head_dim"],
        dtype=dtype,
        kv_data_type=made.get("kv_dtype"),
        device=device,
        capacity=PlanCapacity(4, 60, 100, 900) if is_fixed else None,
    )
    forest = PrefixForest.from_paths(paths)
    for query_rows, padding in ((3, 2), (1, 0), (5, 1)):
        problem = make_problem(
            paths, **of_tensors, device=device, padding=padding, query_rows=query_rows
        )
        problem = dataclasses.replace(problem, **of_problem)
        of_call = problem.of_layer
        cap = of_call.pop("soft_cap")
        if problem.sinks is not None:
            problem = dataclasses.replace(problem, sinks=problem.sinks.to(device))
            of_call["sinks"] = problem.sinks
        wrapper.plan(forest, problem.sm_scale, logits_soft_cap=cap, query_rows=query_rows)
        wider = torch.cat([problem.q, problem.q], 1)
        tensors = wider[:, :6], problem.k_buffer, problem.v_buffer
        out, lse = wrapper.run(*tensors, **of_call, return_lse=True)
        exact, exact_lse = problem.exact()
        close = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(out.double(), exact, atol=close, rtol=close)
        assert_lse_close(lse, exact_lse)


def test_a_run_that_reaches_into_the_newest_tokens_is_private_there(
    device: torch.device, dtype: torch.dtype
) -> None:
    """Of the rows that it does so with; the others share it, and all what is above."""
    counts = [[("top", 40), ("run", 50), (f"tail {r}", tail)] for r, tail in enumerate((0, 2, 3))]
    counts += [[("top", 40), ("run", 50), ("long", 90)], [("top", 40), ("other", 9)]]
    paths = with_slots(counts, seed=2)
    forest = PrefixForest.from_paths(paths)
    several = forest.through_window(0, query_rows=4).checked()
    tails = several.length[several.num_shared :][np.argsort(several.order)]
    assert tails.tolist() == [50, 52, 3, 90, 9]
    assert several.length[: several.num_shared].tolist() == [40, 50]
    assert forest.through_window(0, query_rows=1) is forest
    assert several.through_window(0, query_rows=3) is several
    problem = problem_of(paths, 4, 3, dtype, device)
    plan_batch(paths, problem).check_closely(problem)


def test_what_is_not_served_is_refused_with_its_limit(device: torch.device) -> None:
    where = {"dtype": torch.float16, "device": device}
    wrapper = PrefixSharedDecodeWrapper(16, 2, 64, **where)
    paths = with_slots([[("a", 40)], [("b", 50)]])
    forest = PrefixForest.from_paths(paths)
    for query_rows, more, says in (
        (0, {}, "0 query rows per request, supported are 1 to 16"),
        (17, {}, "17 query rows per request, supported are 1 to 16"),
        (9, {}, "72 rows of a query tile, the limit is 64: at most 8 query rows of this group"),
        (2, {"window_left": 9}, "2 query rows per request and a sliding window"),
    ):
        with pytest.raises(ValueError, match=says):
            wrapper.plan(forest, query_rows=query_rows, **more)
        window = 2000 if more else None
        shape = AttentionShape.plain(16, 2, 64)
        shape = dataclasses.replace(shape, query_rows=query_rows, window=window)
        assert says in (why_unsupported(shape, interpreted=False) or "")
    assert why_unsupported(dataclasses.replace(shape, window=None), interpreted=False) is None
    assert "2 query rows" in str(shape)
    wrapper.plan(forest, query_rows=8)
    problem = make_problem(
        paths, num_qo_heads=16, num_kv_heads=2, head_dim=64, **where, query_rows=8
    )
    q, k, v = problem.q, problem.k_buffer, problem.v_buffer
    with pytest.raises(ValueError, match="q has 15 rows, the plan 8 query rows for each row"):
        wrapper.run(q[:15], k, v)
    with pytest.raises(ValueError, match="q has 8 rows, but the plan is for 16"):
        wrapper.run(q[:8], k, v)
    apart = torch.empty(16, 16, 128, **where)[..., :64]
    wrapper.run(q, k, v, out=apart)  # heads apart, and rows behind one another
    with pytest.raises(ValueError, match="rows of out that follow their heads"):
        wrapper.run(q, k, v, out=torch.empty(16, 18, 64, **where)[:, :16])
    small = PrefixSharedDecodeWrapper(16, 2, 64, **where, capacity=PlanCapacity(1, 9, 9, 99))
    with pytest.raises(PlanCapacityError):
        small.plan(forest, query_rows=2)
