"""Decoding steps without a new plan: rows grow, the plan stays."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from planned import plan_batch, unused_slot

from sglang_codec.kernels.kv_index import gather_slots
from sglang_codec.testing import (
    Counts,
    Problem,
    assert_within_low_precision_error,
    make_problem,
    with_slots,
)

HEADROOM = 5
BATCHES: dict[str, Counts] = {
    "few-shot": [[("prompt", 130), (f"question {row}", 1 + 8 * row)] for row in range(3)],
    "private": [[("a", 127)], [("b", 1)]],
    "a tail that is split": [[("alone", 900)]],
    "absorbed": [[("few", 3), (f"tail {row}", 30)] for row in range(2)],
}


def grown(problem: Problem, slots: torch.Tensor, steps: int) -> Problem:
    """The problem after `steps` more tokens in each row, whose slots are `slots` ``[B, steps]``."""
    rows = [torch.cat([row, slots[r, :steps].cpu()]) for r, row in enumerate(problem.rows)]
    return dataclasses.replace(problem, rows=rows)


@pytest.mark.parametrize("name", BATCHES)
def test_rows_grow_up_to_the_headroom(name: str, device: torch.device, dtype: torch.dtype) -> None:
    counts = BATCHES[name]
    # room in the cache for the tokens to come
    paths = with_slots([*counts, [("new", HEADROOM * len(counts))]], seed=8)
    problem = make_problem(
        paths, num_qo_heads=4, num_kv_heads=1, head_dim=64, dtype=dtype, device=device
    )
    slots = problem.rows.pop().view(len(counts), HEADROOM).to(device)
    problem = dataclasses.replace(problem, q=problem.q[: len(counts)])
    planned = plan_batch(paths[: len(counts)], problem, tail_headroom=HEADROOM, spare_rows=2)
    lengths = torch.tensor([len(row) for row in problem.rows], device=device)
    for step in range(HEADROOM):
        planned.append(lengths + step + 1, slots[:, step].contiguous())
        if step not in (0, HEADROOM - 1):
            continue
        now = grown(problem, slots, step + 1)
        planned.check(now)


@pytest.mark.parametrize("padding", [1, 70])
def test_an_eager_batch_may_be_padded_beyond_the_buffers(
    padding: int, device: torch.device, dtype: torch.dtype
) -> None:
    """Its padding is zero with LSE -inf, and nothing is written behind the lengths."""
    counts = BATCHES["few-shot"]
    paths = with_slots([*counts, [("new", len(counts))]], seed=8)
    problem = make_problem(
        paths,
        num_qo_heads=4,
        num_kv_heads=1,
        head_dim=64,
        dtype=dtype,
        device=device,
        padding=padding,
    )
    slots = problem.rows.pop()
    rows = [torch.cat([row, slots[r : r + 1]]) for r, row in enumerate(problem.rows)]
    # the row that names the new slots is padding too
    now = dataclasses.replace(problem, rows=rows)
    planned = plan_batch(paths[: len(counts)], problem, tail_headroom=HEADROOM)
    buffers = planned.buffers
    memory = torch.full((300,), -7, dtype=torch.int32, device=device)
    buffers.row_lengths = memory[: len(counts)]
    lengths = torch.ones(len(now.q), dtype=torch.int64, device=device)
    lengths[: len(counts)] = torch.tensor([len(row) for row in rows])
    new_slots = torch.full_like(lengths, unused_slot(problem))
    new_slots[: len(counts)] = slots.to(device)
    planned.append(lengths, new_slots)
    out, lse = planned.check(now)
    assert (out[len(counts) :] == 0).all()
    assert (lse[len(counts) :] == -float("inf")).all()
    assert (memory[len(counts) :] == -7).all()


def test_the_index_is_gathered_from_the_request_pool(
    device: torch.device, dtype: torch.dtype
) -> None:
    """As the backend does it: the host never sees a slot."""
    counts = BATCHES["few-shot"]
    paths = with_slots(counts, seed=8)
    problem = make_problem(
        paths, num_qo_heads=4, num_kv_heads=1, head_dim=64, dtype=dtype, device=device
    )
    planned = plan_batch(paths, problem, tail_headroom=HEADROOM)
    pool = torch.full((7, 400), unused_slot(problem), dtype=torch.int32, device=device)
    pool_rows = torch.tensor([5, 2, 6], device=device)
    for row, slots in zip(pool_rows.tolist(), problem.rows, strict=True):
        pool[row, : len(slots)] = slots.to(device, torch.int32)
    planned.buffers.kv_index.fill_(unused_slot(problem))
    spans = planned.buffers.upload(planned.plan)
    assert spans.tolist() == planned.plan.spans.tolist()
    gather_slots(planned.buffers.kv_index, pool, pool_rows, spans, longest=int(spans[:, 2].max()))
    out, _ = planned.attend(problem)
    assert_within_low_precision_error(out, problem.exact()[0], problem.eager())
