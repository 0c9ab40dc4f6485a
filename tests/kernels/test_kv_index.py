"""Filling the KV index on the device: gathering runs, appending one slot per step."""

from __future__ import annotations

import pytest
import torch

from sglang_codec.kernels.kv_index import append_slots, gather_slots


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_runs_are_gathered_from_the_rows_of_the_pool(
    index_dtype: torch.dtype, device: torch.device
) -> None:
    pool = torch.randint(0, 1 << 20, (9, 3000), dtype=torch.int32, device=device)
    pool_rows = torch.tensor([4, 0, 7], dtype=index_dtype, device=device)
    # batch row, first token, tokens, first entry: lengths around a block of 1024, and none at all
    spans = [(0, 0, 1, 5), (1, 17, 1024, 6), (2, 3, 1025, 1030), (0, 60, 0, 2055), (1, 5, 63, 2060)]
    kv_index = torch.full((2200,), -1, dtype=torch.int32, device=device)
    expected = kv_index.clone()
    for row, first, tokens, entry in spans:
        expected[entry : entry + tokens] = pool[pool_rows[row]][first : first + tokens]
    table = torch.tensor(spans, dtype=torch.int32, device=device)
    gather_slots(kv_index, pool, pool_rows, table, longest=1025)
    assert torch.equal(kv_index, expected)


def test_a_pool_may_be_a_view(device: torch.device) -> None:
    pool = torch.arange(4 * 100, dtype=torch.int32, device=device).view(4, 100)[:, :60]
    kv_index = torch.zeros(10, dtype=torch.int32, device=device)
    spans = torch.tensor([(0, 50, 10, 0)], dtype=torch.int32, device=device)
    gather_slots(kv_index, pool, torch.tensor([3], device=device), spans, longest=10)
    assert kv_index.tolist() == list(range(350, 360))


def test_nothing_to_gather(device: torch.device) -> None:
    kv_index = torch.full((4,), 3, dtype=torch.int32, device=device)
    none = torch.zeros(0, 4, dtype=torch.int32, device=device)
    pool = torch.zeros(1, 1, dtype=torch.int32, device=device)
    gather_slots(kv_index, pool, torch.zeros(0, dtype=torch.int64), none, longest=0)
    assert kv_index.tolist() == [3] * 4


@pytest.mark.parametrize("batch", [1, 3, 130])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_the_newest_slot_goes_to_the_end_of_its_rows_tail(
    batch: int, index_dtype: torch.dtype, device: torch.device
) -> None:
    base = torch.arange(batch, dtype=torch.int32, device=device) * 20 + 3
    base[batch // 2] = -1  # a row without a tail, or padding
    plan = torch.cat([torch.full((8,), 99, dtype=torch.int32, device=device), base])
    lengths = torch.arange(batch, dtype=index_dtype, device=device) % 7 + 1
    slots = torch.arange(batch, dtype=index_dtype, device=device) + 500
    kv_index = torch.full((batch * 20 + 20,), -1, dtype=torch.int32, device=device)
    expected = kv_index.clone()
    for row in range(batch):
        if base[row] >= 0:
            expected[base[row] + lengths[row] - 1] = slots[row].int()
    row_lengths = torch.full((batch + 5,), 77, dtype=torch.int32, device=device)
    append_slots(kv_index, row_lengths, plan, lengths, slots, append_base_offset=8)
    assert torch.equal(kv_index, expected)
    assert torch.equal(row_lengths[:batch], lengths.int())
    assert (row_lengths[batch:] == 77).all()
