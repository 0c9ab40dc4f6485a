"""Short runs join the runs below them exactly when that saves bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_codec.planning import absorption
from sglang_codec.planning.absorption import absorbed_starts
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.testing import Counts, lengths_of, radix_paths_of, tree_counts

PAIR = st.tuples(st.integers(0, 99), st.sampled_from((0, 1, 2, 5, 30, 400)))
COUNTS = st.builds(tree_counts, st.lists(PAIR, max_size=10), st.lists(PAIR, max_size=12))
BYTES = st.sampled_from((1.0, 64.0, 512.0, 4096.0))


def absorb_short_runs(forest: PrefixForest, **weights: float) -> np.ndarray:
    """With every row on its own."""
    shared = forest.num_shared
    return absorption.absorb_short_runs(
        forest,
        readers=forest.readers[:shared],
        children=np.bincount(forest.parent[forest.parent >= 0], minlength=shared),
        **weights,
    )


def forest_of(counts: Counts) -> PrefixForest:
    return PrefixForest.from_radix_paths(radix_paths_of(counts), lengths_of(counts))


def two_readers(tokens: int) -> PrefixForest:
    return forest_of([[("shared", tokens), ("left", 9)], [("shared", tokens), ("right", 9)]])


@given(COUNTS, BYTES, BYTES)
def test_what_is_left_still_tiles_every_row(counts: Counts, token: float, partial: float) -> None:
    forest = forest_of(counts)
    absorbed = absorb_short_runs(forest, kv_token_bytes=token, partial_bytes=partial)
    assert absorbed.shape == (forest.num_shared,)
    start = absorbed_starts(forest, absorbed)
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
    free = absorb_short_runs(forest, kv_token_bytes=2.0, partial_bytes=0.0)
    children = np.bincount(forest.parent[forest.parent >= 0], minlength=forest.num_shared)
    # a run with a single child saves nothing by being read on its own
    assert not free[children[: forest.num_shared] > 1].any()


@given(COUNTS)
def test_tokens_that_cost_nothing_absorb_everything(counts: Counts) -> None:
    forest = forest_of(counts)
    assert absorb_short_runs(forest, kv_token_bytes=0.0, partial_bytes=1.0).all()


@pytest.mark.parametrize(("tokens", "is_absorbed"), [(39, True), (40, True), (41, False)])
def test_the_break_even_point(tokens: int, is_absorbed: bool) -> None:
    # two readers write and read one partial each: 4 x 100 bytes; one saved reading: 10 a token
    absorbed = absorb_short_runs(two_readers(tokens), kv_token_bytes=10.0, partial_bytes=100.0)
    assert absorbed.tolist() == [is_absorbed]


def test_tokens_passed_down_count_as_the_nodes_own() -> None:
    # 30 tokens alone are absorbed; with the 30 of their absorbed parent they are worth a task
    chain = [("root", 30), ("inner", 30)]
    counts = [[("root", 30), ("left", 9)]] + [[*chain, (f"tail {row}", 9)] for row in range(2)]
    forest = forest_of(counts)
    absorbed = absorb_short_runs(forest, kv_token_bytes=10.0, partial_bytes=100.0)
    assert absorbed.tolist() == [True, False]
    assert absorbed_starts(forest, absorbed).tolist()[:2] == [0, 0]


def test_a_batch_without_sharing_has_nothing_to_absorb() -> None:
    forest = forest_of([[("a", 4)], [("b", 4)]])
    assert absorb_short_runs(forest, kv_token_bytes=1.0, partial_bytes=1.0).shape == (0,)
    assert absorbed_starts(forest, np.zeros(0, bool)).tolist() == [0, 0]
