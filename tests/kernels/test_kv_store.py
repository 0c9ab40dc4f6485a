"""Writing new keys and values to the KV pool."""

from __future__ import annotations

import dataclasses

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
    def part_of(wider: torch.Tensor) -> torch.Tensor:
        return wider.to(device, dtype)[:, heads * head_dim :][:, : heads * head_dim].view(
            -1, heads, head_dim
        )

    # as models and pools have them: parts of wider rows, and no two of the same
    k, v = (part_of(torch.randn(batch, n * heads * head_dim)) for n in (4, 3))
    buffers = [part_of(torch.full((97, n * heads * head_dim), 7.0)) for n in (2, 5)]
    slots = torch.randperm(97, device=device)[:batch].to(index_dtype)
    expected = [buffer.clone() for buffer in buffers]
    expected[0][slots.long()], expected[1][slots.long()] = k, v
    store_kv(k, v, *buffers, slots, early_launch=False)
    assert torch.equal(buffers[0], expected[0])
    assert torch.equal(buffers[1], expected[1])


@pytest.mark.parametrize(
    "change",
    [
        {"k": (4, 2, 16)},
        {"v": (2, 2, 16)},
        {"slots": (4,)},
        {"slots": (3, 1)},
        {"k": (3, 32)},
        {"k": (1, 3, 2, 16), "v": (1, 3, 2, 16)},
        {"v": (3, 2, 8)},
        {"k": (3, 1, 16), "v": (3, 1, 16)},
        {"v_buffer": (9, 2, 8)},
        {"k_buffer": (9, 1, 16)},
    ],
    ids=str,
)
def test_rows_that_do_not_match_are_refused(
    change: dict[str, tuple[int, ...]], device: torch.device, dtype: torch.dtype
) -> None:
    shapes = {"k": (3, 2, 16), "v": (3, 2, 16), "k_buffer": (9, 2, 16), "v_buffer": (9, 2, 16)}
    shapes |= {"slots": (3,)} | change
    tensors = {name: torch.zeros(shape, device=device).to(dtype) for name, shape in shapes.items()}
    tensors["slots"] = tensors["slots"].long()
    with pytest.raises(ValueError, match=r"store_kv needs .*; got k \("):
        store_kv(**tensors, early_launch=False)


@pytest.mark.parametrize("name", ["k", "v", "k_buffer", "v_buffer"])
def test_rows_of_another_dtype_or_layout_are_refused(
    name: str, device: torch.device, dtype: torch.dtype
) -> None:
    tensors = {n: torch.zeros(3, 2, 16, device=device).to(dtype) for n in ("k", "v")}
    tensors |= {n: torch.zeros(9, 2, 16, device=device).to(dtype) for n in ("k_buffer", "v_buffer")}
    slots = torch.arange(3, device=device)
    good = tensors[name]
    for bad in (
        good.double(),
        good.transpose(1, 2).contiguous().transpose(1, 2),
        torch.cat([good, good], 2)[..., :16],
    ):
        with pytest.raises(ValueError, match="heads and dimensions contiguous; got"):
            store_kv(**{**tensors, name: bad}, slots=slots, early_launch=False)


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
@pytest.mark.parametrize("kv_dtype", [None, torch.float8_e4m3fn], ids=["", "fp8"])
def test_pac_reads_the_tokens_stored_right_before_it(
    counts: Counts, kv_dtype: torch.dtype | None, device: torch.device, dtype: torch.dtype
) -> None:
    """Queries and newest tokens are written by the two launches before PAC, in every layer."""
    paths = with_slots(counts, seed=4)
    problem = make_problem(
        paths,
        num_qo_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=128,
        dtype=dtype,
        kv_dtype=kv_dtype,
        device=device,
    )
    scales = {"k_scale": 0.5, "v_scale": 0.25} if kv_dtype else {}
    problem = dataclasses.replace(problem, **scales)
    planned = plan_batch(paths, problem)
    newest = torch.stack([row[-1] for row in problem.rows]).to(device)
    q = torch.full_like(problem.q, float("nan"))
    caches = [(problem.k_buffer.clone(), problem.v_buffer.clone()) for _ in range(LAYERS)]
    new = torch.cat(
        [
            problem.k_buffer[newest].to(dtype) * problem.k_scale,
            problem.v_buffer[newest].to(dtype) * problem.v_scale,
        ],
        1,
    ).flatten(1)
    new_k, new_v = (half.view(-1, KV_HEADS, 128) for half in new.chunk(2, 1))
    outs = [torch.empty_like(q) for _ in range(LAYERS)]
    busy = torch.zeros(1 << 22, device=device)

    def step() -> None:
        update_lengths(planned.buffers)
        for (k, v), out in zip(caches, outs, strict=True):
            busy.add_(1)
            q.copy_(problem.q)
            early = planned.config.early_launch
            store_kv(new_k, new_v, k, v, newest, early_launch=early, **scales)
            attend = {"sm_scale": problem.sm_scale, "config": planned.config} | scales
            prefix_shared_attention(q, k, v, out, planned.buffers, **attend)
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
