"""The planner trusts nothing: what is no tree, or not of these rows, is an error, never a read."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_specs import SPEC, cost_model
from random_paths import NODE, ROW, paths_of

from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.frugal import frugal_plan
from sglang_codec.planning.index import kv_index_of
from sglang_codec.planning.paths import RadixPaths
from sglang_codec.planning.plan import PlanCapacity, PlanCapacityError, PlanLayout
from sglang_codec.planning.planner import Planner, make_plan

COST = cost_model(SPEC)
CAPACITY = PlanCapacity(64, 4096, 4096, 1 << 16)
LAYOUT = PlanLayout.of(CAPACITY, SPEC)
# rows 0, 1 and 2 share 100 tokens, rows 0 and 1 share 50 more, row 3 is private
PARENT, END, LEAF, LENGTHS = [-1, 0], [100, 150], [1, 1, 0, -1], [160, 170, 101, 30]

PLANNER = Planner(SPEC, COST, CAPACITY)
PLANNERS: dict[str, Callable[[PrefixForest], Any]] = {
    "planner": PLANNER.make_plan,
    "frugal": lambda forest: frugal_plan(forest, SPEC, COST, CAPACITY),
}


def a(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # a batch that was padded after its paths were read, and the other way round
        ({"lengths": a(*LENGTHS, 1, 1)}, r"lengths has shape \(6,\), but the paths describe 4 row"),
        ({"lengths": a(*LENGTHS[:3])}, r"lengths has shape \(3,\), but the paths describe 4 rows"),
        ({"leaf": a(1, 1)}, "but the paths describe 2 rows"),
        ({"leaf": a(1, 1, 2, -1)}, r"leaf\[2\] = 2 must lie in \[-1, 2\)"),
        ({"leaf": a(1, 1, 0, -2)}, r"leaf\[3\] = -2 must"),
        ({"parent": a(-1, 1)}, r"parent\[1\] = 1 must lie in \[-1, own index\)"),
        ({"parent": a(1, -1)}, r"parent\[0\] = 1 must"),
        ({"parent": a(-2, 0)}, r"parent\[0\] = -2 must"),
        ({"end": a(100, 100)}, r"end\[1\] = 100 must be larger than its parent's end"),
        ({"end": a(0, 150)}, r"end\[0\] = 0 must"),
        ({"lengths": a(160, -1, 101, 30)}, r"lengths\[1\] = -1 must be 0 or more"),
        ({"lengths": np.array(LENGTHS, float)}, "integer array.*dtype float64"),
        ({"lengths": a(*LENGTHS)[:, None]}, "one-dimensional"),
        ({"lengths": np.array([2**31 + 5, 1, 1, 1])}, "must fit 32 bits"),
        ({"end": np.array([100, 2**32 + 150])}, "end must fit 32 bits"),
        ({"leaf": np.array([None] * 4)}, "leaf must be a one-dimensional integer array"),
    ],
)
def test_a_batch_that_is_no_tree_is_refused(change: dict, message: str) -> None:
    given_arrays = {"parent": a(*PARENT), "end": a(*END), "leaf": a(*LEAF), "lengths": a(*LENGTHS)}
    out = np.full(LAYOUT.size, -7, np.int32)
    arrays = {**given_arrays, **change}
    lengths = arrays.pop("lengths")
    with pytest.raises(ValueError, match=message):
        PLANNER.pack_paths(RadixPaths(**arrays), lengths, LAYOUT, out)
    assert (out == -7).all()


@pytest.mark.parametrize(
    "out",
    [
        np.zeros(LAYOUT.size - 1, np.int32),
        np.zeros(LAYOUT.size, np.int64),
        np.zeros(2 * LAYOUT.size, np.int32)[::2],
        np.zeros((1, LAYOUT.size), np.int32),
        np.broadcast_to(np.int32(0), (LAYOUT.size,)),
        [0] * LAYOUT.size,
    ],
    ids=["too short", "dtype", "strided", "two dimensions", "read-only", "a list"],
)
def test_an_output_that_cannot_take_the_plan_is_refused(out: Any) -> None:
    paths = RadixPaths(a(*PARENT), a(*END), a(*LEAF))
    with pytest.raises(ValueError, match=f"contiguous, writable int32 .{LAYOUT.size}. or more"):
        PLANNER.pack_paths(paths, a(*LENGTHS), LAYOUT, out)


def test_a_layout_of_other_buffers_is_refused() -> None:
    smaller = PlanLayout.of(dataclasses.replace(CAPACITY, parts=1, rows=2), SPEC)
    paths, out = RadixPaths(a(*PARENT), a(*END), a(*LEAF)), np.zeros(LAYOUT.size, np.int32)
    with pytest.raises(ValueError, match="the layout is for plans of .*rows=2"):
        PLANNER.pack_paths(paths, a(*LENGTHS), smaller, out)


def test_a_plan_behind_the_end_of_its_layout_is_refused() -> None:
    """More spans than a forest has runs and tails: no planner makes them, `pack` writes none."""
    forest = PrefixForest.from_radix_paths(RadixPaths(a(*PARENT), a(*END), a(*LEAF)), a(*LENGTHS))
    plan = make_plan(forest, SPEC, COST, CAPACITY)
    plan = dataclasses.replace(plan, spans=np.tile(plan.spans, (LAYOUT.size, 1)))
    out = np.full(LAYOUT.size, -7, np.int32)
    with pytest.raises(PlanCapacityError, match="elements but the layout holds"):
        LAYOUT.pack(plan, out)
    assert (out == -7).all()


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": a(3, 0, 1)}, r"lengths has shape \(4,\), but order \(3,\)"),
        ({"order": a(3, 2, 0, 4)}, r"order\[3\] = 4 must lie in \[0, 4\)"),
        ({"order": a(3, 2, 0, 0)}, r"order\[2\] = 0 must be there once"),
        ({"lengths": a(160, 170, 101, -30)}, r"lengths\[3\] = -30 must be 0 or more"),
        ({"lengths": a(160, 171, 101, 30)}, r"length\[3\] = 20 must end a tail with its row"),
        ({"parent": a(-1, 1, -1, 0, 1, 1)}, r"parent\[1\] = 1 must be -1 or a shared run before"),
        ({"parent": a(-1, 0, -1, 0, 1, 2)}, r"parent\[5\] = 2 must"),
        ({"parent": a(-1, 0, -7, 0, 1, 1)}, r"parent\[2\] = -7 must"),
        ({"start": a(0, 99, 0, 100, 150, 150)}, r"start\[1\] = 99 must be where its parent ends"),
        ({"length": a(0, 150, 30, 1, 10, 20)}, r"length\[0\] = 0 must be 1 or more"),
        ({"length": a(100, 50, 30, -1, 10, 20)}, r"length\[3\] = -1 must be 0 or more"),
        ({"first": a(0, 2, 0, 1, 2, 3)}, r"must have the readers of its children"),
        ({"first": a(1, 0, 0, 1, 2, 3)}, r"first\[1\] = 0 must begin within its parent's readers"),
        ({"last": a(4, 5, 1, 2, 3, 4)}, r"last\[1\] = 5 must end within its parent's readers"),
        ({"last": a(9, 4, 1, 2, 3, 4)}, r"last\[0\] = 9 must end within"),
        ({"first": a(1, 2, 1, 1, 2, 3)}, r"first\[2\] = 1 must begin within|first\[0\] = 1 must"),
        ({"last": a(4, 4, 1, 3, 3, 4)}, "must be the tail's own position"),
        ({name: a(0) for name in ("parent", "start", "length", "first", "last")}, "but only 1 nod"),
        ({"first": a(1, 2, 0, 1, 2)}, r"first has shape \(5,\), but parent \(6,\)"),
        ({"length": np.full(6, 10.0)}, "length must be a one-dimensional integer array"),
    ],
)
def test_arrays_that_are_no_forest_are_refused(planner: str, change: dict, message: str) -> None:
    forest = PrefixForest.from_radix_paths(RadixPaths(a(*PARENT), a(*END), a(*LEAF)), a(*LENGTHS))
    assert forest.order.tolist() == [3, 2, 0, 1]  # what the changes below are made to
    assert forest.first.tolist() == [1, 2, 0, 1, 2, 3]
    PLANNERS[planner](forest)
    with pytest.raises(ValueError, match=message):
        PLANNERS[planner](dataclasses.replace(forest, **change))


def is_tree(parent: list[int], end: list[int], leaf: list[int], lengths: list[int]) -> bool:
    below_parents = all(
        -1 <= above < node and end[node] > (end[above] if above >= 0 else 0)
        for node, above in enumerate(parent)
    )
    return below_parents and all(-1 <= n < len(end) for n in leaf) and min(lengths) >= 0


@given(
    st.lists(NODE, max_size=6),
    st.lists(ROW, min_size=1, max_size=6),
    st.sampled_from(("parent", "end", "leaf", "lengths")),
    st.integers(0, 9),
    st.sampled_from((-(2**31), -2, -1, 0, 1, 5, 99, 2**31 - 1)),
)
@settings(max_examples=80)
def test_any_value_is_refused_or_planned(
    nodes: list, rows: list, name: str, at: int, value: int
) -> None:
    """What passes the border is planned."""
    paths, lengths = paths_of(nodes, rows)
    arrays = {"parent": paths.parent, "end": paths.end, "leaf": paths.leaf, "lengths": lengths}
    if not len(arrays[name]):
        return
    arrays[name][at % len(arrays[name])] = value
    changed, out = RadixPaths(paths.parent, paths.end, paths.leaf), np.empty(LAYOUT.size, np.int32)
    if not is_tree(*(array.tolist() for array in arrays.values())):
        with pytest.raises(ValueError, match=rf"{name}\[|end\["):
            PLANNER.pack_paths(changed, lengths, LAYOUT, out)
        with pytest.raises(ValueError, match=rf"{name}\[|end\["):
            PrefixForest.from_radix_paths(changed, lengths)
        return
    with contextlib.suppress(PlanCapacityError):
        packed = PLANNER.pack_paths(changed, lengths, LAYOUT, out)
        assert packed.kv_tokens_stock == int(lengths.sum(dtype=np.int64))


@pytest.mark.parametrize(
    ("slots", "offset", "message"),
    [
        (np.full(60, -4), None, r"slots must lie in \[0, 2\^31\)"),
        (np.arange(59), None, r"kv_offset.* within the 59 KV slots"),
        (np.arange(60), np.arange(2), r"kv_offset has shape \(2,\)"),
        (np.arange(60), np.array([-1, 40, 50]), "kv_offset"),
        (np.arange(60.0), None, "integer"),
    ],
)
def test_slots_of_a_forest_made_by_hand_are_checked(
    slots: np.ndarray, offset: np.ndarray | None, message: str
) -> None:
    paths = [
        [("prompt", np.arange(40)), (f"own {row}", 40 + 10 * row + np.arange(10))]
        for row in range(2)
    ]
    forest = PrefixForest.from_paths(paths)
    plan = make_plan(forest, SPEC, COST, CAPACITY)
    kv_offset = forest.kv_offset if offset is None else offset
    broken = dataclasses.replace(forest, kv_slots=slots, kv_offset=kv_offset)
    with pytest.raises(ValueError, match=message):
        kv_index_of(broken, plan)
