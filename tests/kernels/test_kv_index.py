"""Filling the KV index on the device: gathering runs, appending one slot per step."""

from __future__ import annotations

import pytest
import torch

from sglang_codec.kernels.kv_index import append_slots, gather_slots


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_runs_are_gathered_from_the_rows_of_the_pool(
    index_dtype: torch.dtype, moved: bool, device: torch.device
) -> None:
    """As they are, or moved: their places in another pool."""
    pool = torch.randint(0, 1 << 12, (9, 3000), dtype=torch.int32, device=device)
    moved_to = torch.randperm(1 << 12, device=device) if moved else None
    pool_rows = torch.tensor([4, 0, 7], dtype=index_dtype, device=device)
    # batch row, first token, tokens, first entry: lengths around a block of 1024, and none at all
    spans = [(0, 0, 1, 5), (1, 17, 1024, 6), (2, 3, 1025, 1030), (0, 60, 0, 2055), (1, 5, 63, 2060)]
    kv_index = torch.full((2200,), -1, dtype=torch.int32, device=device)
    expected = kv_index.clone()
    for row, first, tokens, entry in spans:
        slots = pool[pool_rows[row]][first : first + tokens]
        expected[entry : entry + tokens] = slots if moved_to is None else moved_to[slots].int()
    table = torch.tensor(spans, dtype=torch.int32, device=device)
    gather_slots(kv_index, pool, pool_rows, table, longest=1025, moved_to=moved_to)
    assert torch.equal(kv_index, expected)


@pytest.mark.parametrize("padding", [1, 3, 200])
def test_rows_beyond_what_a_plan_may_have_are_left_alone(
    padding: int, device: torch.device
) -> None:
    """An eager batch is padded beyond the buffers, which lie in front of other memory here."""
    rows = 5
    memory = torch.full((1000,), -7, dtype=torch.int32, device=device)
    row_lengths, plan, kv_index = memory[:rows], memory[300:600], memory[600:700]
    # what follows the section would be taken for bases
    plan[8 : 8 + rows] = torch.arange(rows, dtype=torch.int32) * 10
    plan[8 + rows :] = 3
    expected = memory.clone()
    lengths = torch.arange(rows + padding, device=device) % 9 + 1
    slots = torch.arange(rows + padding, device=device) + 100
    expected[:rows] = lengths[:rows]
    for row in range(rows):
        expected[600 + 10 * row + lengths[row] - 1] = slots[row].int()
    append_slots(kv_index, row_lengths, plan, lengths, slots, append_base_offset=8)
    assert torch.equal(memory, expected)


def test_a_row_without_a_slot_is_refused(device: torch.device) -> None:
    ints = torch.zeros(40, dtype=torch.int32, device=device)
    rows = torch.zeros(4, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="append_slots needs a length and a slot of every row"):
        append_slots(ints, ints[:4], ints, rows, rows[:3], append_base_offset=8)
    with pytest.raises(ValueError, match="append_slots needs"):
        append_slots(ints, ints[:4].long(), ints, rows, rows, append_base_offset=8)
    # where a window has left a row's first tokens, its token 0 may lie before the index
    none, index = -(1 << 30), torch.zeros(9, dtype=torch.int32, device=device)
    plan = torch.tensor([-95, none, -93, none], dtype=torch.int32, device=device)
    lengths, slots = torch.tensor([[97, 2, 99, 1], [5, 6, 7, 8]], device=device)
    append_slots(index, ints[:4], plan, lengths, slots, append_base_offset=0, windowed=True)
    assert index.tolist() == [0, 5, 0, 0, 0, 7, 0, 0, 0]
    # only padding is without one
    append_slots(ints, ints[:2], ints, rows, rows[:3], append_base_offset=8)


@pytest.mark.parametrize("name", ["kv_index", "req_to_token", "spans", "pool_rows"])
def test_gathering_from_another_dtype_or_layout_is_refused(name: str, device: torch.device) -> None:
    tensors = {
        "kv_index": torch.zeros(9, dtype=torch.int32, device=device),
        "req_to_token": torch.zeros(9, 20, dtype=torch.int32, device=device),
        "spans": torch.zeros(2, 4, dtype=torch.int32, device=device),
        "pool_rows": torch.zeros(2, dtype=torch.int64, device=device),
    }
    good = tensors[name]
    apart = torch.stack([good, good], -1)[..., 0]
    for bad in (apart, *([] if name == "pool_rows" else [good.long()])):
        with pytest.raises(ValueError, match="gather_slots needs"):
            gather_slots(**{**tensors, name: bad}, longest=3)


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
