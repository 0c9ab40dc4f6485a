"""Short runs join the runs below them exactly when that saves bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_specs import SPEC, cost_model
from stages import machine_of, tables_of

from sglang_codec.planning.absorption import absorb
from sglang_codec.planning.bundles import single_units
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.windows import edges_of
from sglang_codec.testing import Counts, lengths_of, radix_paths_of, tree_counts

PAIR = st.tuples(st.integers(0, 99), st.sampled_from((0, 1, 2, 5, 30, 400)))
COUNTS = st.builds(tree_counts, st.lists(PAIR, max_size=10), st.lists(PAIR, max_size=12))
BYTES = st.sampled_from((1.0, 64.0, 512.0, 4096.0))


def absorbed_with(
    forest: PrefixForest, *, kv_token_bytes: float, partial_bytes: float, eager: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Which shared runs are absorbed, every row on its own, and where each node then starts."""
    machine, tables = machine_of(SPEC, cost_model(SPEC)), tables_of(forest)
    machine.kv_token_bytes, machine.partial_bytes = kv_token_bytes, partial_bytes
    edges = edges_of(tables, machine)
    ways = absorb(tables, single_units(forest.batch), machine, edges, eager)
    return ways["absorbed"][: forest.num_shared].astype(bool), ways["start"]


def forest_of(counts: Counts) -> PrefixForest:
    return PrefixForest.from_radix_paths(radix_paths_of(counts), lengths_of(counts))


def two_readers(tokens: int) -> PrefixForest:
    return forest_of([[("shared", tokens), ("left", 9)], [("shared", tokens), ("right", 9)]])


@given(COUNTS, BYTES, BYTES)
def test_what_is_left_still_tiles_every_row(counts: Counts, token: float, partial: float) -> None:
    forest = forest_of(counts)
    absorbed, start = absorbed_with(forest, kv_token_bytes=token, partial_bytes=partial)
    end = forest.start + forest.length
    for position, row in enumerate(forest.order.tolist()):
        node, expected_end = forest.num_shared + position, int(forest.lengths[row])
        while node >= 0:
            if node >= forest.num_shared or not absorbed[node]:
                assert end[node] == expected_end
                expected_end = int(start[node])
            node = int(forest.parent[node])
        assert expected_end == 0


@given(COUNTS)
def test_partials_that_cost_nothing_absorb_nothing(counts: Counts) -> None:
    forest = forest_of(counts)
    free, _ = absorbed_with(forest, kv_token_bytes=2.0, partial_bytes=0.0)
    children = np.bincount(forest.parent[forest.parent >= 0], minlength=forest.num_shared)
    # a run with a single child saves nothing by being read on its own
    assert not free[children[: forest.num_shared] > 1].any()


@given(COUNTS)
def test_tokens_that_cost_nothing_absorb_everything(counts: Counts) -> None:
    forest = forest_of(counts)
    assert absorbed_with(forest, kv_token_bytes=0.0, partial_bytes=1.0)[0].all()
    everything = {"kv_token_bytes": 9.0, "partial_bytes": 1.0, "eager": math.inf}
    assert absorbed_with(forest, **everything)[0].all()
    assert not absorbed_with(forest, **everything | {"eager": 0.0})[0].any()


@pytest.mark.parametrize(("tokens", "is_absorbed"), [(39, True), (40, True), (41, False)])
def test_the_break_even_point(tokens: int, is_absorbed: bool) -> None:
    # two readers write and read one partial each: 4 x 100 bytes; one saved reading: 10 a token
    absorbed, _ = absorbed_with(two_readers(tokens), kv_token_bytes=10.0, partial_bytes=100.0)
    assert absorbed.tolist() == [is_absorbed]


def test_tokens_passed_down_count_as_the_nodes_own() -> None:
    # 30 tokens alone are absorbed; with the 30 of their absorbed parent they are worth a task
    chain = [("root", 30), ("inner", 30)]
    counts = [[("root", 30), ("left", 9)]] + [[*chain, (f"tail {row}", 9)] for row in range(2)]
    forest = forest_of(counts)
    absorbed, start = absorbed_with(forest, kv_token_bytes=10.0, partial_bytes=100.0)
    assert absorbed.tolist() == [True, False]
    assert start.tolist()[:2] == [0, 0]


def test_a_batch_without_sharing_has_nothing_to_absorb() -> None:
    forest = forest_of([[("a", 4)], [("b", 4)]])
    absorbed, start = absorbed_with(forest, kv_token_bytes=1.0, partial_bytes=1.0)
    assert (absorbed.tolist(), start.tolist()) == ([], [0, 0])
