"""The plan that is left when planning fails: every row by itself."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_checker import check_plan
from plan_specs import SPEC, SPECS
from token_rows import TokenRows

from sglang_codec.planning.packed import pack
from sglang_codec.planning.plain import plain_plan
from sglang_codec.planning.plan import (
    PlanCapacity,
    PlanCapacityError,
    PlanLayout,
    PlanSpec,
)

LENGTHS = st.lists(st.sampled_from((0, 1, 3, 64, 65, 900)), max_size=70)


@given(LENGTHS, SPECS)
def test_every_row_reads_its_own_tokens_and_may_grow(lengths: list[int], spec: PlanSpec) -> None:
    plan = plain_plan(np.array(lengths, np.int32), spec)
    rows = [np.arange(*ends) for ends in pairwise(np.cumsum([0, *lengths]))]
    found = check_plan(plan, TokenRows.of_slots(rows), spec)
    assert found["tasks"] == np.count_nonzero(lengths)
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
