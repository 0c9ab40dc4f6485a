"""The step's lengths: open chunks follow their rows, bundles are laid out anew."""

from __future__ import annotations

import pytest
import torch
from planned import Planned, plan_batch

from sglang_codec.attention import update_lengths
from sglang_codec.testing import Counts, make_problem, seen_pieces, with_slots

HEADROOM = 9
BATCHES: dict[str, Counts] = {
    "chunks": [[("prompt", 700), (f"tail {row}", 400 + row)] for row in range(3)],
    "bundles": [
        [("prompt", 300), (f"group {row // 5}", 17), (f"tail {row}", 1 + row % 7)]
        for row in range(40)
    ],
}


def planned(name: str, device: torch.device, headroom: int) -> Planned:
    paths = with_slots(BATCHES[name], seed=4)
    problem = make_problem(
        paths, num_qo_heads=4, num_kv_heads=2, head_dim=64, dtype=torch.float32, device=device
    )
    result = plan_batch(paths, problem, tail_headroom=headroom)
    # every entry its own slot, so that a misplaced one shows
    result.buffers.kv_index.copy_(torch.arange(len(result.buffers.kv_index), dtype=torch.int32))
    return result


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("growth", [-3, 0, 1, HEADROOM, HEADROOM + 5])
def test_every_task_is_as_long_as_its_rows_are_now(
    name: str, growth: int, device: torch.device
) -> None:
    batch = planned(name, device, HEADROOM)
    plan, buffers = batch.plan, batch.buffers
    assert (plan.num_bundles > 0) == (name == "bundles")
    lengths = plan.lengths + growth
    buffers.row_lengths[: plan.batch] = torch.from_numpy(lengths).to(device)
    update_lengths(buffers)

    records = buffers.plan[buffers.layout.tasks :][: plan.tasks.size].view(-1, 8).tolist()
    index = buffers.kv_index.cpu().numpy()
    slots, readers = buffers.bundle_index.tolist(), buffers.bundle_readers.tolist()
    first_bundle = plan.num_tasks - plan.num_bundles
    for task, (start, length, first, queries, *_) in enumerate(records):
        open_row, base, most = plan.tasks[task, 5:8].tolist()
        if task < first_bundle:
            planned_length = plan.tasks[task, 1]
            now = max(min(lengths[open_row] - base, most), 0) if open_row >= 0 else planned_length
            assert length == now
            continue
        # each query of a bundle sees its pieces, in order, and nothing else
        own = range(start, start + length)
        for query in range(queries):
            seen = [slots[e] for e in own if readers[e] & 0xFFFF <= query < readers[e] >> 16]
            pieces = seen_pieces(plan, index, task, query, lengths)
            assert seen == [slot for piece in pieces for slot in piece.tolist()], (task, first)
    if growth > HEADROOM:
        assert (
            sum(record[1] for record in records) <= plan.tasks[:, 1].sum() + HEADROOM * plan.batch
        )


@pytest.mark.parametrize(
    "name", ["plan", "row_lengths", "kv_index", "bundle_index", "bundle_readers"]
)
def test_tensors_of_another_dtype_or_length_are_refused(name: str, device: torch.device) -> None:
    buffers = planned("chunks", device, 0).buffers
    good = getattr(buffers, name)
    for bad in (good.long(), *([good[:-1]] if name.startswith("bundle") else [])):
        setattr(buffers, name, bad)
        with pytest.raises(ValueError, match=r"follow_lengths needs .*; got plan \("):
            update_lengths(buffers)


def test_closed_tasks_keep_their_lengths(device: torch.device) -> None:
    batch = planned("bundles", device, 0)
    batch.buffers.row_lengths.fill_(1)
    update_lengths(batch.buffers)
    layout, tasks = batch.buffers.layout, batch.plan.tasks
    records = batch.buffers.plan[layout.tasks :][: tasks.size].view(-1, 8)
    assert records[:, 1].tolist() == tasks[:, 1].tolist()
