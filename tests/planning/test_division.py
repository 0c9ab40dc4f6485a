"""Chunks cover their item, keep to the block size and balance the slots."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_specs import SHAPE
from stages import items_of, machine_of

from sglang_codec.planning.cost_model import CostModel, roofline_cost_model
from sglang_codec.planning.division import chunk_size, smallest_target
from sglang_codec.planning.plan import PlanSpec


def cost_model(overhead: float = 2.0) -> CostModel:
    return roofline_cost_model(
        SHAPE,
        num_ctas=264,
        bandwidth=3e12,
        flops=8e14,
        task_overhead_us=overhead,
    )


ITEMS = st.lists(
    st.tuples(st.sampled_from((16, 64)), st.integers(1, 200_000)), min_size=1, max_size=40
)
SLOTS = st.sampled_from((1, 2, 7, 33, 132))
BLOCKS = st.sampled_from((16, 64, 128))


def divide(items: list[tuple[int, int]], slots: int, block: int, finer: float = 1.0) -> np.ndarray:
    """Tokens per chunk of each item."""
    spec = PlanSpec(SHAPE, (16, 64), block, slots)
    table, machine = items_of(items, spec, cost_model()), machine_of(spec, cost_model())
    target, smallest = smallest_target(table, machine, 0.0)
    each = max(target / finer, smallest)
    return np.array([chunk_size(item, machine, each) for item in table])


@given(ITEMS, SLOTS, BLOCKS)
def test_chunks_are_whole_blocks_and_none_is_empty(
    items: list[tuple[int, int]], slots: int, block: int
) -> None:
    size = divide(items, slots, block)
    tokens = np.array(items)[:, 1]
    assert (size >= block).all()
    assert (size % block == 0).all()
    chunks = -(-tokens // size)
    assert (chunks * size >= tokens).all()
    assert ((chunks - 1) * size < tokens).all()


@given(ITEMS, SLOTS, BLOCKS)
def test_the_longest_chunk_is_no_longer_than_a_balanced_schedule_needs(
    items: list[tuple[int, int]], slots: int, block: int
) -> None:
    """No chunk dominates: all of them together fill the slots for at least about as long."""
    rows, tokens = np.array(items).T
    size = divide(items, slots, block)
    chunks = -(-tokens // size)
    model = cost_model()
    longest = model.task_us(rows, np.minimum(size, tokens))
    total = (chunks * model.task_us(rows, tokens / chunks)).sum()
    # up to a block more than the target is due to rounding, 2 % to the search
    slack = model.task_us(rows, np.full(len(rows), block)).max()
    assert longest.max() <= 1.02 * total / slots + slack


@given(ITEMS, BLOCKS)
def test_one_slot_needs_no_division(items: list[tuple[int, int]], block: int) -> None:
    rows, tokens = np.array(items).T
    size = divide(items, 1, block)
    chunks = -(-tokens // size)
    model = cost_model()
    cut, whole = chunks * model.task_us(rows, tokens / chunks), model.task_us(rows, tokens)
    assert cut.sum() <= 1.01 * whole.sum() + model.task_us([64], [block])[0]
    if len(items) == 1:
        assert chunks[0] == 1


@given(ITEMS, SLOTS, BLOCKS)
def test_finer_chunks_are_never_longer(
    items: list[tuple[int, int]], slots: int, block: int
) -> None:
    coarse, fine = divide(items, slots, block), divide(items, slots, block, finer=2.5)
    tokens = np.array(items)[:, 1]
    assert (-(-tokens // fine) >= -(-tokens // coarse)).all()


@pytest.mark.parametrize("slots", [2, 8, 33])
def test_a_long_item_is_spread_over_all_slots(slots: int) -> None:
    size = divide([(16, 120_000)], slots, 64)
    assert -(-120_000 // size[0]) == slots


def test_short_items_stay_whole() -> None:
    assert divide([(16, 40)] * 500, 33, 64).tolist() == [64] * 500


def test_a_shared_run_is_cut_beside_short_tails() -> None:
    size = divide([(64, 100_000)] + [(16, 100)] * 8, 33, 64)
    assert 25 <= -(-100_000 // size[0]) <= 33
    assert (size[1:] >= 100).all()
