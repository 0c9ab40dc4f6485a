"""Where the newest tokens of window layers go, when graphs of more rows are replayed."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from sglang_codec.window_slots import WindowSlots

PLACES = torch.arange(100, 200)


def window_slots(rows: int) -> WindowSlots:
    return WindowSlots(SimpleNamespace(full_to_swa_index_mapping=PLACES), rows)


def test_rows_beyond_a_steps_own_are_written_to_slot_0() -> None:
    """A graph of four rows knows an address; smaller batches are not padded when they are taken."""
    slots = window_slots(2)
    slots.reserve(6)
    slots.take(torch.tensor([3, 1, 4, 2]))
    captured = slots.now
    assert captured.tolist() == [103, 101, 104, 102]
    for batch in ([7, 5, 6], [], [9]):
        slots.take(torch.tensor(batch, dtype=torch.int64))
        assert captured.tolist() == [100 + slot for slot in batch] + [0] * (4 - len(batch))


def test_a_batch_that_no_graph_has_is_looked_up_all_the_same() -> None:
    slots = window_slots(2)
    slots.take(torch.tensor([3, 1, 4]))
    assert slots.now.tolist() == [103, 101, 104]
