"""The numbers by which a plan is packed are those by which the kernels read it."""

from __future__ import annotations

from sglang_codec.kernels import records
from sglang_codec.planning import plan
from sglang_codec.planning.windows import no_tail


def test_the_kernels_read_what_the_planner_packs() -> None:
    assert records.TASK_INTS.value == len(plan.TASK_FIELDS)
    assert records.PIECE_INTS.value == len(plan.PIECE_FIELDS)
    for name in ("SLOT_INTS", "MERGE_INTS", "ALIGNED_ENTRIES"):
        assert getattr(records, name).value == getattr(plan, name), name
    assert records.NO_TAIL.value == no_tail(0)
    assert records.NO_TAIL_BEHIND_WINDOW.value == no_tail(1) == no_tail(1 << 20)
