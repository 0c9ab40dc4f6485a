"""The plan that is left when planning fails: every row by itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_specs import SPEC, SPECS

from sglang_codec.planning.packed import pack
from sglang_codec.planning.plain import plain_plan
from sglang_codec.planning.plan import (
    ALIGNED_ENTRIES,
    PlanCapacity,
    PlanCapacityError,
    PlanLayout,
    PlanSpec,
)
from sglang_codec.testing import check_plan

LENGTHS = st.lists(st.sampled_from((0, 1, 3, 64, 65, 900)), max_size=70)


def index_of(rows: list[np.ndarray], spans: np.ndarray, entries: int) -> np.ndarray:
    index = np.full(entries, -1, np.int32)
    for row, first, tokens, entry in spans.tolist():
        index[entry : entry + tokens] = rows[row][first : first + tokens]
    return index


@given(LENGTHS, SPECS, st.data())
def test_every_row_reads_its_own_tokens_and_may_grow(
    lengths: list[int], spec: PlanSpec, data: st.DataObject
) -> None:
    plan = plain_plan(np.array(lengths, np.int32), spec)
    ends = np.cumsum([0, *lengths])
    rows = [np.arange(*ends[i : i + 2], dtype=np.int32) for i in range(len(lengths))]
    index = index_of(rows, plan.spans, plan.kv_entries)
    check_plan(plan, index, rows, lengths)
    assert (plan.tasks[:, 0] % ALIGNED_ENTRIES == 0).all()
    for row, length in enumerate(lengths):
        for _ in range(data.draw(st.integers(0, int(plan.max_lengths[row]) - length))):
            index[plan.append_base[row] + len(rows[row])] = token = 10**6 + row
            rows[row] = np.append(rows[row], token)
    check_plan(plan, index, rows, list(map(len, rows)))
    grown = np.array(lengths) + np.where(lengths, spec.tail_headroom, 0)
    assert plan.max_lengths.tolist() == grown.tolist()


@given(LENGTHS, SPECS)
def test_it_is_packed_as_any_plan_and_all_slots_take_part(
    lengths: list[int], spec: PlanSpec
) -> None:
    plan = plain_plan(np.array(lengths, np.int64), spec)
    rows = max(len(lengths), 1)
    layout = PlanLayout.of(PlanCapacity(rows, rows, 0, plan.kv_entries, 0), spec)
    packed = pack(None, plan, layout, np.empty(layout.size, np.int32))
    assert (packed.kv_tokens_read, packed.num_spans) == (sum(lengths), np.count_nonzero(lengths))
    assert (packed.num_shared, packed.depth) == (0, int(any(lengths)))
    bounds, per_slot = plan.slot_indptr, np.diff(plan.slot_indptr[0])
    assert bounds.shape == (spec.num_classes, spec.num_slots + 1)
    assert per_slot.max() - per_slot.min() <= 1
    assert (bounds[1:] == bounds[0, -1]).all()
    for slot in range(spec.num_slots):
        tokens = plan.tasks[bounds[0, slot] : bounds[0, slot + 1], 1]
        assert (np.diff(tokens) <= 0).all(), "not longest first"


def test_rows_that_share_more_than_the_index_holds_do_not_fit() -> None:
    spec = dataclasses.replace(SPEC, tail_headroom=128)
    plan = plain_plan(np.full(3, 100, np.int32), spec)
    layout = PlanLayout.of(PlanCapacity(3, 3, 3, 3 * 228 - 1), spec)
    with pytest.raises(PlanCapacityError, match="needs 684 kv_index but the buffers hold 683"):
        pack(None, plan, layout, np.empty(layout.size, np.int32))


@pytest.mark.parametrize("lengths", [[-1], [0.5], [[1]], [2**31]])
def test_lengths_that_are_none_are_refused(lengths: list) -> None:
    with pytest.raises(ValueError, match="lengths"):
        plain_plan(np.array(lengths), SPEC)
