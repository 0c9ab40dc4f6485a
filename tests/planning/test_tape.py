"""The tape: everything once, few cuts, slots about equally long."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from plan_specs import SHAPE
from stages import items_of, machine_of, tasks_of

from sglang_codec.planning.cost_model import CostModel, roofline_cost_model
from sglang_codec.planning.plan import PlanSpec
from sglang_codec.planning.tape import cut_tape

OVERHEAD_US = 2.0
COST: CostModel = roofline_cost_model(
    SHAPE,
    num_ctas=264,
    bandwidth=3e12,
    flops=7e14,
    task_overhead_us=OVERHEAD_US,
)
ITEMS = st.lists(
    st.tuples(st.sampled_from((16, 64)), st.integers(1, 20_000)), min_size=1, max_size=60
)


def cut(
    items: list[tuple[int, int]], slots: int, block: int, busy: np.ndarray | None = None
) -> tuple[np.ndarray, ...]:
    spec = PlanSpec(SHAPE, (16, 64), block, slots)
    rows, tokens = (np.array(column) for column in zip(*items, strict=True))
    busy = np.zeros(slots) if busy is None else busy
    tasks = tasks_of(np.zeros(len(items) + 2 * slots))
    table, whole = items_of(items, spec, COST), np.zeros(len(items), np.int64)
    tasks = tasks[: cut_tape(table, whole, busy, machine_of(spec, COST), tasks)]
    begin = tasks["begin"]
    return rows, tokens, tasks["source"], begin, begin + tasks["tokens"], tasks["slot"]


@given(items=ITEMS, slots=st.sampled_from((1, 2, 8, 33)), block=st.sampled_from((16, 32, 64)))
def test_every_token_is_in_one_task_and_every_task_in_one_slot(
    items: list[tuple[int, int]], slots: int, block: int
) -> None:
    _, tokens, item, begin, end, slot = cut(items, slots, block)
    assert (begin < end).all()
    assert (begin % block == 0).all()
    for index, count in enumerate(tokens):
        mine = item == index
        assert begin[mine][0] == 0
        assert end[mine][-1] == count
        assert (end[mine][:-1] == begin[mine][1:]).all()
    assert len(item) <= len(items) + slots - 1
    assert slot.min() >= 0
    assert slot.max() < slots
    assert (np.diff(slot) >= 0).all()


@given(items=ITEMS, slots=st.sampled_from((1, 2, 8, 33)))
def test_no_slot_is_longer_than_its_share_and_one_more_task(
    items: list[tuple[int, int]], slots: int
) -> None:
    block = 32
    rows, tokens, item, begin, end, slot = cut(items, slots, block)
    us = COST.task_us(rows[item], end - begin)
    share = COST.task_us(rows, tokens).sum() / slots
    # at its begin a slot gets the rest of a task, at its end it may finish one: each time at most
    # the overhead more than its share, and a cut is rounded to a block
    a_block = COST.task_us(np.array([64]), np.array([block]))[0] - OVERHEAD_US
    assert np.bincount(slot, weights=us).max() <= share + 2 * OVERHEAD_US + a_block + 1e-6


@given(items=ITEMS, busy=st.lists(st.floats(0, 500), min_size=1, max_size=33))
@example(items=[(16, 80)], busy=[0.0, 9.0])
def test_what_slots_have_to_do_besides_counts(
    items: list[tuple[int, int]], busy: list[float]
) -> None:
    block, slots = 32, len(busy)
    rows, tokens, item, begin, end, slot = cut(items, slots, block, np.array(busy))
    load = np.array(busy)
    np.add.at(load, slot, COST.task_us(rows[item], end - begin))
    total = COST.task_us(rows, tokens).sum()
    # the level to which the tape fills the slots: none is lower, and none above it takes part
    level = min(
        (total + sum(sorted(busy)[:n])) / n
        for n in range(1, slots + 1)
        if n == slots or (total + sum(sorted(busy)[:n])) / n <= sorted(busy)[n]
    )
    a_block = COST.task_us(np.array([64]), np.array([block]))[0] - OVERHEAD_US
    assert load.max() <= max(level + 2 * OVERHEAD_US + a_block, *busy) + 1e-6


def test_the_order_of_the_items_changes_nothing() -> None:
    items = [(16, 100), (64, 4000), (16, 700), (64, 90), (16, 5000)]

    def pieces(order: list[int]) -> list[tuple[int, ...]]:
        rows, _, item, begin, end, slot = cut([items[i] for i in order], 8, 32)
        return sorted(zip(rows[item], begin, end, slot, strict=True))

    assert pieces([0, 1, 2, 3, 4]) == pieces([3, 1, 4, 0, 2])


@pytest.mark.parametrize("slots", [8, 33, 132])
def test_a_long_item_is_spread_over_all_slots(slots: int) -> None:
    *_, slot = cut([(16, 100_000)], slots, 32)
    assert slot.tolist() == list(range(slots))
