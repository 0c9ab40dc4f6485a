"""Writing new keys and values to the KV pool."""

from __future__ import annotations

import pytest
import torch
from planned import plan_batch

from sglang_codec.attention import prefix_shared_attention, update_lengths
from sglang_codec.kernels.kv_store import store_kv
from sglang_codec.testing import (
    Counts,
    assert_within_low_precision_error,
    make_problem,
    with_slots,
)


@pytest.mark.parametrize("batch", [1, 5, 33])
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 64), (3, 16), (8, 128)])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_only_the_slots_of_the_rows_are_written(
    batch: int,
    heads: int,
    head_dim: int,
    index_dtype: torch.dtype,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    # keys and values as a model has them: parts of wider rows
    wide = torch.randn(batch, 4 * heads * head_dim, device=device).to(dtype)
    k, v = (
        wide[:, begin * heads * head_dim :][:, : heads * head_dim].view(batch, heads, head_dim)
        for begin in (1, 3)
    )
    buffers = [torch.full((97, heads, head_dim), 7.0, device=device).to(dtype) for _ in range(2)]
    slots = torch.randperm(97, device=device)[:batch].to(index_dtype)
    expected = [buffer.clone() for buffer in buffers]
    expected[0][slots.long()], expected[1][slots.long()] = k, v
    store_kv(k, v, *buffers, slots, early_launch=False)
    assert torch.equal(buffers[0], expected[0])
    assert torch.equal(buffers[1], expected[1])


ROWS, HEADS, KV_HEADS, LAYERS = 24, 16, 4, 3


@pytest.mark.parametrize(
    "counts",
    [
        [[("prompt", 700), (f"question {row}", 40 + row)] for row in range(8)],
        [[("prompt", 300), (f"question {row}", 5 + row)] for row in range(ROWS)],
        [[(f"alone {row}", 30 * row + 1)] for row in range(ROWS)],
        [[("prompt", 500), (f"question {row % 9}", 64), (f"end {row}", 1)] for row in range(ROWS)],
    ],
    ids=["few-shot", "bundles", "alone", "one token each"],
)
def test_pac_reads_the_tokens_stored_right_before_it(
    counts: Counts, device: torch.device, dtype: torch.dtype
) -> None:
    """Queries and newest tokens are written by the two launches before PAC, in every layer."""
    paths = with_slots(counts, seed=4)
    problem = make_problem(
        paths,
        num_qo_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=128,
        dtype=dtype,
        device=device,
    )
    planned = plan_batch(paths, problem)
    newest = torch.stack([row[-1] for row in problem.rows]).to(device)
    q = torch.full_like(problem.q, float("nan"))
    caches = [(problem.k_buffer.clone(), problem.v_buffer.clone()) for _ in range(LAYERS)]
    new = torch.cat([problem.k_buffer[newest], problem.v_buffer[newest]], 1).flatten(1)
    new_k, new_v = (half.view(-1, KV_HEADS, 128) for half in new.chunk(2, 1))
    outs = [torch.empty_like(q) for _ in range(LAYERS)]
    busy = torch.zeros(1 << 22, device=device)

    def step() -> None:
        update_lengths(planned.buffers)
        for (k, v), out in zip(caches, outs, strict=True):
            busy.add_(1)
            q.copy_(problem.q)
            store_kv(new_k, new_v, k, v, newest, early_launch=planned.config.early_launch)
            prefix_shared_attention(
                q, k, v, out, planned.buffers, sm_scale=problem.sm_scale, config=planned.config
            )
            q.fill_(float("nan"))

    run, runs = step, 1
    if device.type == "cuda":
        step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        run, runs = graph.replay, 8
    exact, eager = problem.exact()[0], problem.eager()
    for _ in range(runs):
        for tensor in outs:
            tensor.fill_(float("nan"))
        for k, v in caches:
            k[newest], v[newest] = float("nan"), float("nan")
        run()
        for out in outs:
            assert_within_low_precision_error(out, exact, eager)
