"""PAC on its own: what every single task leaves behind."""

from __future__ import annotations

import dataclasses
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from planned import Planned, plan_batch

from sglang_codec import attention
from sglang_codec.attention import prefix_shared_attention, update_lengths
from sglang_codec.attention_shape import AttentionShape
from sglang_codec.kernels import pac as pac_module
from sglang_codec.kernels.launch import INTERPRETED, LaunchConfig, Tile, launch_config
from sglang_codec.kernels.pac import PacArguments, PacVariant, pac
from sglang_codec.reference import decode_attention
from sglang_codec.testing import (
    Counts,
    Problem,
    assert_lse_close,
    assert_within_low_precision_error,
    eager_attention,
    make_problem,
    seen_pieces,
    with_slots,
)

SHAPE = AttentionShape.plain(32, 8, 128)
NAN = float("nan")


def run_pac(
    planned: Planned, problem: Problem, *, with_lse: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """PAC without POR, into outputs and partials that were NaN before."""
    buffers, q = planned.buffers, problem.q
    update_lengths(buffers)
    out = torch.full_like(q, NAN)
    lse = torch.full(q.shape[:2], NAN, device=q.device) if with_lse else None
    buffers.partial_out.fill_(NAN)
    buffers.partial_lse.fill_(NAN)
    with mock.patch.object(attention, "por"):
        prefix_shared_attention(
            q,
            problem.k_buffer,
            problem.v_buffer,
            out,
            buffers,
            sm_scale=problem.sm_scale,
            config=planned.config,
            lse=lse,
        )
    return out, lse


def check_tasks(counts: Counts, device: torch.device, dtype: torch.dtype, group: int) -> None:
    """Every task's result is the attention of its rows over its chunk, where it belongs."""
    paths = with_slots(counts, seed=3, spare=20)
    problem = make_problem(
        paths, num_qo_heads=2 * group, num_kv_heads=2, head_dim=64, dtype=dtype, device=device
    )
    planned = plan_batch(paths, problem)
    out, lse = run_pac(planned, problem)
    plan, buffers = planned.plan, planned.buffers
    written = torch.zeros(len(out), dtype=torch.bool)
    kv_index = buffers.kv_index.cpu()
    for task, (kv_start, kv_len, first, queries, part, *_) in enumerate(plan.tasks.tolist()):
        rows = plan.order[first : first + queries].tolist()
        chunks = [kv_index[kv_start : kv_start + kv_len]] * queries
        if task >= plan.num_tasks - plan.num_bundles:
            chunks = [
                torch.cat(list(seen_pieces(plan, kv_index, task, query, plan.lengths)))
                for query in range(queries)
            ]
        arguments = (
            problem.q[rows],
            problem.k_buffer,
            problem.v_buffer,
            chunks,
            problem.sm_scale,
        )
        exact, exact_lse = decode_attention(*arguments)
        if part < 0:
            actual, actual_lse = out[rows], lse[rows]
            written[rows] = True
        else:
            actual = buffers.partial_out[part : part + queries]
            actual_lse = buffers.partial_lse[part : part + queries]
        # partials are fp32, but their weights were rounded to the dtype of V
        rounded = torch.full((), torch.finfo(dtype).eps * exact.abs().max().item())
        assert not actual.isnan().any()
        budget = 2 * (eager_attention(*arguments).double() - exact).abs().max() + rounded
        assert (actual.double() - exact).abs().max() <= budget
        assert_lse_close(actual_lse, exact_lse)
    assert out[~written].isnan().all(), "PAC wrote a row that has several parts"


@pytest.mark.parametrize(
    "counts",
    [
        [[("a", 63)], [("b", 1)], [("c", 17)]],
        [[("prompt", 200), (f"tail {row}", 5 + row)] for row in range(4)],
        [[("alone", 1500)], [("b", 3)]],
        [[("prompt", 90), (f"tail {row}", 2)] for row in range(9)],
    ],
    ids=["private rows", "few-shot", "a long row", "several query tiles"],
)
def test_every_task_computes_its_chunk(
    counts: Counts, device: torch.device, dtype: torch.dtype
) -> None:
    check_tasks(counts, device, dtype, group=8)


@pytest.mark.parametrize("group", [1, 3, 7])
def test_groups_that_do_not_fill_the_tile(
    group: int, device: torch.device, dtype: torch.dtype
) -> None:
    check_tasks([[("prompt", 130), (f"t{row}", 9)] for row in range(3)], device, dtype, group)


@pytest.mark.parametrize(
    "change",
    [
        {"q": (1, 4, 4, 64)},
        {"q": (5, 4, 64)},
        {"out": (3, 4, 64)},
        {"out": (1, 4, 4, 64)},
        {"q": (4, 3, 64), "out": (4, 3, 64)},
        {"q": (4, 6, 64), "out": (4, 6, 64)},
        {"q": (4, 256), "out": (4, 256)},
        {"k_buffer": (40, 2, 32)},
        {"v_buffer": (40, 1, 64)},
        {"k_buffer": (5, 8, 2, 64), "v_buffer": (5, 8, 2, 64)},
        {"lse": (3, 4)},
        {"lse": (4, 8)},
    ],
    ids=str,
)
def test_tensors_that_do_not_match_are_refused(
    change: dict[str, tuple[int, ...]], device: torch.device, dtype: torch.dtype
) -> None:
    """Before any of them is written; a row count that a caller gets wrong is an error, no write."""
    tensors = pac_tensors(device, dtype)
    for name, shape in change.items():
        like = torch.float32 if name == "lse" else dtype
        tensors[name] = torch.full(shape, NAN, dtype=like, device=device)
    with pytest.raises(ValueError, match=r"pac needs .*; got q \("):
        launch(tensors)


@pytest.mark.parametrize("name", ["q", "out", "k_buffer", "v_buffer", "lse"])
def test_another_dtype_or_a_last_dimension_in_pieces_is_refused(
    name: str, device: torch.device, dtype: torch.dtype
) -> None:
    tensors = pac_tensors(device, dtype)
    good = tensors[name]
    for bad in (good.double(), torch.stack([good, good], -1)[..., 0]):
        with pytest.raises(ValueError, match=r"pac needs .*; got q \("):
            launch(tensors | {name: bad})


@pytest.mark.parametrize("name", ["q", "k_buffer", "v_buffer"])
def test_warp_roles_refuse_rows_that_begin_between_copies(name: str, device: torch.device) -> None:
    tensors = pac_tensors(device, torch.bfloat16)
    shape = tensors[name].shape
    wide = torch.zeros(*shape[:-1], 100, dtype=torch.bfloat16, device=device)
    shifted = torch.zeros(1 + shape.numel(), dtype=torch.bfloat16, device=device)
    for bad in (wide[..., :64], shifted[1:].view(shape)):
        with pytest.raises(ValueError, match="rows that begin at multiples of 16 bytes"):
            launch(tensors | {name: bad}, config=launch_config((9, 0), SHAPE))


def pac_tensors(device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Of four rows, four heads and two KV heads."""
    q = torch.full((4, 4, 64), NAN, dtype=dtype, device=device)
    k = torch.full((40, 2, 64), NAN, dtype=dtype, device=device)
    lse = torch.full((4, 4), NAN, device=device)
    tensors = {"q": q, "k_buffer": k, "v_buffer": k.clone(), "out": q.clone(), "lse": lse}
    return tensors | {"partial_out": torch.zeros(4, 4, 64, device=device)}


def launch(
    tensors: dict[str, torch.Tensor], config: LaunchConfig = INTERPRETED, **of_layer: Any
) -> None:
    """PAC with a plan of nothing."""
    device = tensors["out"].device
    ints = torch.zeros(1000, dtype=torch.int32, device=device)
    names = ("q", "k_buffer", "v_buffer", "out", "lse", "partial_out")
    pac(
        *(tensors[name] for name in names),
        tensors["partial_out"][..., 0].contiguous(),
        *[ints] * 4,
        order_offset=100,
        tasks_offset=200,
        num_slots=2,
        sm_scale=1.0,
        config=config,
        **of_layer,
    )


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_fewer_query_rows_than_the_plan_has_are_refused(
    rows: int, device: torch.device, dtype: torch.dtype
) -> None:
    paths = with_slots([[("a", 30)], [("b", 17)], [("c", 2)]])
    problem = make_problem(
        paths, num_qo_heads=4, num_kv_heads=1, head_dim=64, dtype=dtype, device=device
    )
    planned = plan_batch(paths, problem)
    short = dataclasses.replace(problem, q=problem.q[:rows])
    with pytest.raises(ValueError, match=f"q has {rows} rows, but the plan is for 3; plan again"):
        planned.attend(short)


def test_queries_may_lie_in_pieces(device: torch.device, dtype: torch.dtype) -> None:
    paths = with_slots([[("prompt", 90), (f"tail {row}", 2 + row)] for row in range(3)])
    problem = make_problem(
        paths, num_qo_heads=4, num_kv_heads=1, head_dim=64, dtype=dtype, device=device
    )
    apart = problem.q.transpose(1, 2).contiguous().transpose(1, 2)
    assert apart.stride(-1) != 1
    out = torch.full(apart.shape, NAN, dtype=dtype, device=device)
    planned = plan_batch(paths, problem)
    update_lengths(planned.buffers)
    prefix_shared_attention(
        apart,
        problem.k_buffer,
        problem.v_buffer,
        out,
        planned.buffers,
        sm_scale=problem.sm_scale,
        config=planned.config,
    )
    assert_within_low_precision_error(out, problem.exact()[0], problem.eager())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("group", [1, 2])
def test_weights_of_small_groups_are_not_rounded(
    group: int, dtype: torch.dtype, device: torch.device
) -> None:
    """As in the stock kernels for them: a rounded weight is off by some 1e-3, its rest is not."""
    paths = with_slots([[("prompt", 300), (f"tail {row}", 40)] for row in range(3)])
    problem = make_problem(
        paths, num_qo_heads=2 * group, num_kv_heads=2, head_dim=64, dtype=dtype, device=device
    )
    planned = plan_batch(paths, problem)
    run_pac(planned, problem)
    plan, kv_index = planned.plan, planned.buffers.kv_index.cpu()
    is_partial = plan.tasks[: plan.num_tasks - plan.num_bundles, 4] >= 0
    tasks = plan.tasks[: len(is_partial)][is_partial].tolist()
    assert tasks
    for kv_start, kv_len, first, queries, part, *_ in tasks:
        rows = plan.order[first : first + queries].tolist()
        chunk = kv_index[kv_start : kv_start + kv_len]
        arguments = (problem.k_buffer, problem.v_buffer, [chunk] * queries, problem.sm_scale)
        exact, _ = decode_attention(problem.q[rows], *arguments)
        error = (planned.buffers.partial_out[part : part + queries].double() - exact).abs().max()
        assert error <= 5e-5 * exact.abs().max()


class Recorder:
    """A kernel that notes what it is launched with."""

    def __init__(self) -> None:
        self.launches: list[tuple[tuple[int, ...], PacArguments, PacVariant]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda arguments, variant, **_: self.launches.append((grid, arguments, variant))


@pytest.mark.parametrize("group", [1, 3, 4, 8])
def test_both_kernels_are_given_the_same(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    portable, hopper = Recorder(), types.ModuleType("sglang_codec.kernels.hopper.kernel")
    hopper._pac_hopper_kernel = Recorder()
    monkeypatch.setattr(pac_module, "_pac_kernel", portable)
    monkeypatch.setitem(sys.modules, hopper.__name__, hopper)
    q, kv = torch.zeros(4, 2 * group, 64), torch.zeros(9, 2, 64)
    dtypes = (torch.float16, torch.bfloat16, torch.float32)
    for dtype in dtypes:
        tensors = {"q": q, "k_buffer": kv, "v_buffer": kv, "out": q}
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        tensors |= {"lse": None, "partial_out": q}
        for config in (INTERPRETED, launch_config((9, 0), SHAPE)):
            of_layer = {"sinks": q[0, :, 0].clone(), "soft_cap": 30.0, "v_scale": 0.5}
            of_rows = {"row_lengths": torch.zeros(4, dtype=torch.int32), "window": 7}
            launch(tensors, config, **of_layer, **of_rows)
    pairs = list(zip(portable.launches, hopper._pac_hopper_kernel.launches, strict=True))
    assert len(pairs) == len(dtypes)
    for dtype, ((grid, given, variant), (other_grid, other_given, other)) in zip(
        dtypes, pairs, strict=True
    ):
        assert grid == other_grid
        for value, other_value in zip(given, other_given, strict=True):
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other_value))
        is_exact = group < 4 and dtype != torch.float32
        assert variant.EXACT_WEIGHTS is is_exact
        of_config = ("CLASSES", "STAGES", "EARLY_LAUNCH")
        assert other._replace(**{name: getattr(variant, name) for name in of_config}) == variant


@pytest.mark.parametrize("group", [1, 3, 4])
def test_small_groups_may_round_their_weights(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As FA3 does, where SGLang would decode with it; larger groups always do."""
    monkeypatch.setattr(pac_module, "_pac_kernel", kernel := Recorder())
    q, kv = (torch.zeros(4, heads, 64, dtype=torch.bfloat16) for heads in (2 * group, 2))
    tensors = {"q": q, "k_buffer": kv, "v_buffer": kv, "out": q, "lse": None, "partial_out": q}
    for exact_weights in (True, False):
        launch(tensors, dataclasses.replace(INTERPRETED, exact_weights=exact_weights))
    exact = [variant.EXACT_WEIGHTS for _, _, variant in kernel.launches]
    assert exact == [group < 4, False]


@pytest.mark.parametrize("kernel", ["portable", "hopper"])
def test_no_kernel_ignores_an_argument(kernel: str) -> None:
    folder = Path(pac_module.__file__).parent
    shared = (folder / "results.py", folder / "softmax.py")
    files = [*folder.joinpath(kernel).glob("*.py"), *shared]
    read = re.findall(r"\bgiven\.(\w+)", "".join(file.read_text() for file in files))
    assert set(read) == set(PacArguments._fields)


def test_the_lse_may_be_left_out(device: torch.device, dtype: torch.dtype) -> None:
    paths = with_slots([[("a", 30)], [("b", 17)]])
    problem = make_problem(
        paths, num_qo_heads=4, num_kv_heads=1, head_dim=64, dtype=dtype, device=device
    )
    planned = plan_batch(paths, problem)
    assert (planned.plan.tasks[:, 4] < 0).all()
    out, _ = run_pac(planned, problem, with_lse=False)
    assert_within_low_precision_error(out, problem.exact()[0], problem.eager())
    # without an LSE the kernel gets another tensor in its place, and must not write it
    assert planned.buffers.partial_lse.isnan().all()


def test_an_open_chunk_ends_where_its_row_ends_now(
    device: torch.device, dtype: torch.dtype
) -> None:
    counts = [[("prompt", 40), ("tail", 20)], [("prompt", 40)]]
    paths = with_slots(counts)
    problem = make_problem(
        paths, num_qo_heads=4, num_kv_heads=1, head_dim=64, dtype=dtype, device=device
    )
    planned = plan_batch(paths, problem, tail_headroom=30)
    for length in (60, 55, 41, 40):
        planned.buffers.row_lengths[0] = length
        rows = [problem.rows[0][:length], problem.rows[1]]
        arguments = (problem.q, problem.k_buffer, problem.v_buffer, rows, problem.sm_scale)
        out, lse = planned.attend(problem)
        exact, exact_lse = decode_attention(*arguments)
        assert_within_low_precision_error(out, exact, eager_attention(*arguments))
        assert_lse_close(lse, exact_lse)


@pytest.mark.parametrize("score", [-3e4, 3e4])
def test_scores_far_from_zero_do_not_overflow(
    score: float, device: torch.device, dtype: torch.dtype
) -> None:
    """A softmax that forgets to subtract the maximum would give inf or 0/0."""
    paths = with_slots([[("prompt", 300), (f"tail {row}", 20)] for row in range(2)])
    problem = make_problem(
        paths, num_qo_heads=2, num_kv_heads=1, head_dim=64, dtype=dtype, device=device
    )
    direction = torch.nn.functional.normalize(torch.ones(64), dim=0).to(device)
    used = torch.from_numpy(np.unique(np.concatenate([row.numpy() for row in problem.rows])))
    problem.q[:] = (direction * abs(score)).to(dtype)
    problem.k_buffer[used] += (direction * (8.0 if score > 0 else -8.0)).to(dtype)
    out, lse = plan_batch(paths, problem).attend(problem)
    exact, exact_lse = problem.exact()
    assert out.isfinite().all()
    # fp32 scores of this size are exact to a few hundredths
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-4, atol=1.0)
    assert (out.double() - exact).abs().max() < 0.2


@pytest.mark.parametrize("value", [NAN, float("inf")])
@pytest.mark.parametrize("group", [1, 4])
def test_a_row_with_nan_in_its_cache_spoils_no_other_row(
    value: float, group: int, device: torch.device, dtype: torch.dtype
) -> None:
    """Rows of a bundle share a query tile, and zero times NaN is NaN."""
    counts = [[(f"group {r // 5}", 9), (f"tail {r}", 3 + r % 4)] for r in range(60)]
    paths = with_slots(counts, seed=2)
    problem = make_problem(
        paths, num_qo_heads=2 * group, num_kv_heads=2, head_dim=64, dtype=dtype, device=device
    )
    spoiled = 17
    problem.v_buffer[problem.rows[spoiled][-1]] = value
    planned = plan_batch(paths, problem)
    assert planned.plan.num_bundles > 0
    out, lse = planned.attend(problem)
    exact, exact_lse = problem.exact()
    assert not out[spoiled].isfinite().any()
    others = [row for row in range(60) if row != spoiled]
    assert_within_low_precision_error(out[others], exact[others], problem.eager()[others])
    assert_lse_close(lse, exact_lse)


def test_a_query_of_a_bundle_may_see_nothing_in_a_step(
    device: torch.device, dtype: torch.dtype
) -> None:
    counts = [[(f"group {r // 5}", 9), (f"tail {r}", 3 + r % 4)] for r in range(60)]
    paths = with_slots(counts, seed=2)
    problem = make_problem(
        paths, num_qo_heads=4, num_kv_heads=2, head_dim=64, dtype=dtype, device=device
    )
    small = dataclasses.replace(INTERPRETED, bundle=Tile(32, 16))
    planned = plan_batch(paths, problem, config=small if device.type == "cpu" else None)
    planned.check(problem)
    plan, readers = planned.plan, planned.buffers.bundle_readers
    bundles = plan.tasks[plan.num_tasks - plan.num_bundles :].tolist()
    # the last query of one is not among those of the first 16 tokens
    assert any(
        int(readers[at : at + 16].max()) >> 16 < queries for at, _, _, queries, *_ in bundles
    )
