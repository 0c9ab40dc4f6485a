"""Longest-first scheduling: complete, bounded, reproducible."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from stages import tasks_of

from sglang_codec.planning import schedule
from sglang_codec.planning.tables import KEY

COSTS = st.lists(st.floats(0.1, 100.0), max_size=60).map(np.array)


def longest_first(us: np.ndarray, slots: int) -> tuple[np.ndarray, np.ndarray]:
    """The slot of each task, and the load of each slot."""
    tasks = tasks_of(us)
    load = schedule.longest_first(tasks, slots)
    return tasks["slot"], load


def best_makespan(us: np.ndarray, slots: int) -> float:
    """The optimum, by trying everything."""
    choices = itertools.product(range(slots), repeat=len(us))
    return min(
        np.bincount(choice, weights=us, minlength=slots).max() for choice in map(list, choices)
    )


@given(COSTS, st.integers(1, 9))
def test_every_task_runs_once_and_the_loads_add_up(us: np.ndarray, slots: int) -> None:
    slot, load = longest_first(us, slots)
    assert slot.shape == us.shape
    assert load.shape == (slots,)
    assert ((slot >= 0) & (slot < slots)).all()
    np.testing.assert_allclose(np.bincount(slot, weights=us, minlength=slots), load)


@given(st.lists(st.floats(0.1, 100.0), min_size=1, max_size=60).map(np.array), st.integers(1, 9))
def test_no_slot_waits_longer_than_one_task(us: np.ndarray, slots: int) -> None:
    _, load = longest_first(us, slots)
    assert load.max() <= us.sum() / slots + (1 - 1 / slots) * us.max() + 1e-9


@given(
    st.lists(st.integers(1, 50).map(float), min_size=1, max_size=7).map(np.array),
    st.integers(1, 3),
)
def test_at_most_a_third_longer_than_the_optimum(us: np.ndarray, slots: int) -> None:
    _, load = longest_first(us, slots)
    assert load.max() <= (4 / 3 - 1 / (3 * slots)) * best_makespan(us, slots) + 1e-9


def test_longest_first_beats_the_given_order() -> None:
    # in the given order the long task would start last: 3 + 6
    _, load = longest_first(np.array([3.0, 3.0, 3.0, 3.0, 6.0]), 3)
    assert load.tolist() == [6.0, 6.0, 6.0]


@given(COSTS, st.integers(1, 9))
def test_equal_input_gives_an_equal_schedule(us: np.ndarray, slots: int) -> None:
    first, second = longest_first(us, slots), longest_first(us.copy(), slots)
    assert first[0].tolist() == second[0].tolist()


def test_ties_fall_to_the_lower_slot() -> None:
    slot, _ = longest_first(np.full(5, 2.0), 3)
    assert slot.tolist() == [0, 1, 2, 0, 1]


def test_nothing_to_do() -> None:
    slot, load = longest_first(np.zeros(0), 4)
    assert slot.shape == (0,)
    assert load.tolist() == [0.0] * 4


@given(st.lists(st.sampled_from((-1.5, 0.0, 1.0, 2.0, 7.0)), max_size=70))
def test_sorting_keeps_the_order_of_equal_keys(keys: list[float]) -> None:
    table = np.zeros(len(keys), KEY)
    table["key"], table["place"] = keys, np.arange(len(keys))
    schedule.sort(table)
    assert table["place"].tolist() == sorted(range(len(keys)), key=keys.__getitem__)
    assert table["key"].tolist() == sorted(keys)
