"""Writing new keys and values to the KV pool."""

from __future__ import annotations

import pytest
import torch

from sglang_codec.kernels.kv_store import store_kv


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
