"""`PrefixForest`: what it promises, from every source, in any batch order."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.paths import RadixPaths
from sglang_codec.testing import (
    Counts,
    check_forest,
    kv_indices_of,
    lengths_of,
    radix_paths_of,
    random_counts,
    rows_of,
    structure_of,
    tree_counts,
    with_slots,
)

PAIR = st.tuples(st.integers(0, 99), st.sampled_from((0, 0, 1, 2, 5, 17)))
COUNTS = st.builds(tree_counts, st.lists(PAIR, max_size=10), st.lists(PAIR, max_size=10))

EDGES: dict[str, Counts] = {
    "empty batch": [],
    "one row": [[("a", 5)]],
    "one empty row": [[]],
    "only zero-length segments": [[("a", 0), ("b", 0)], [("a", 0), ("c", 0)]],
    "chain": [[("a", 3), ("b", 4), ("c", 5), (f"t{row}", 1)] for row in range(3)],
    "duplicate rows": [[("a", 3), ("b", 2)]] * 4,
    "a row is a prefix of another": [[("a", 3)], [("a", 3), ("b", 2)], [("a", 3), ("b", 2)]],
    "two roots and a stranger": [
        [("a", 3), ("p", 1)],
        [("b", 4)],
        [("a", 3), ("q", 2)],
        [("c", 9)],
        [("b", 4), ("r", 1)],
    ],
    "zero-length segment inside": [
        [("a", 2), ("z", 0), ("b", 2)],
        [("a", 2), ("z", 0), ("b", 2), ("c", 1)],
    ],
}


def from_paths(counts: Counts) -> PrefixForest:
    return PrefixForest.from_paths(with_slots(counts, seed=1, spare=7))


def slots_of_rows(forest: PrefixForest) -> list[list[int]]:
    """The slots of each batch row, put together from the runs of its path."""
    rows: list[list[int]] = [[] for _ in range(forest.batch)]
    for position, row in enumerate(forest.order.tolist()):
        node = forest.num_shared + position
        while node >= 0:
            offset, length = int(forest.kv_offset[node]), int(forest.length[node])
            rows[row] = forest.kv_slots[offset : offset + length].tolist() + rows[row]
            node = int(forest.parent[node])
    return rows


@given(COUNTS)
def test_the_runs_of_every_path_tile_its_tokens(counts: Counts) -> None:
    check_forest(from_paths(counts), lengths_of(counts).tolist())


@pytest.mark.parametrize("name", EDGES)
def test_edge_cases_keep_every_promise(name: str) -> None:
    paths = with_slots(EDGES[name])
    lengths = lengths_of(EDGES[name])
    forests = (
        PrefixForest.from_paths(paths),
        PrefixForest.from_kv_indices(*kv_indices_of(paths)),
        PrefixForest.from_radix_paths(radix_paths_of(EDGES[name]), lengths),
    )
    for forest in forests:
        check_forest(forest, lengths.tolist())
        assert structure_of(forest) == structure_of(forests[0])


@given(COUNTS)
def test_every_row_gets_its_own_slots_in_token_order(counts: Counts) -> None:
    paths = with_slots(counts, seed=2)
    expected = [row.tolist() for row in rows_of(paths)]
    assert slots_of_rows(PrefixForest.from_paths(paths)) == expected
    assert slots_of_rows(PrefixForest.from_kv_indices(*kv_indices_of(paths))) == expected


@given(COUNTS)
def test_every_slot_is_listed_once(counts: Counts) -> None:
    forest = from_paths(counts)
    used = {slot for row in rows_of(with_slots(counts, seed=1, spare=7)) for slot in row.tolist()}
    assert sorted(forest.kv_slots.tolist()) == sorted(used)
    assert forest.unique_tokens == len(used)
    assert forest.total_tokens == lengths_of(counts).sum()


@given(COUNTS)
def test_all_three_sources_agree(counts: Counts) -> None:
    paths = with_slots(counts, seed=3)
    named = structure_of(PrefixForest.from_paths(paths))
    compared = PrefixForest.from_kv_indices(*kv_indices_of(paths))
    proven = PrefixForest.from_radix_paths(radix_paths_of(counts), lengths_of(counts))
    assert structure_of(compared) == named
    assert structure_of(proven) == named


@given(COUNTS, st.randoms(use_true_random=False))
def test_the_order_of_the_batch_does_not_matter(counts: Counts, shuffler: random.Random) -> None:
    rows = list(range(len(counts)))
    shuffler.shuffle(rows)
    paths = with_slots(counts, seed=4)
    shuffled = [paths[row] for row in rows]
    expected = structure_of(PrefixForest.from_paths(paths))
    assert structure_of(PrefixForest.from_paths(shuffled), rows) == expected
    by_slots = PrefixForest.from_kv_indices(*kv_indices_of(shuffled))
    assert structure_of(by_slots, rows) == expected


def test_a_chain_becomes_one_run() -> None:
    forest = from_paths(EDGES["chain"])
    assert structure_of(forest) == {(0, 12, frozenset({0, 1, 2}))} | {
        (12, 1, frozenset({row})) for row in range(3)
    }
    assert forest.num_shared == 1
    assert forest.depth == 2


def test_duplicate_rows_share_everything_and_have_empty_tails() -> None:
    forest = from_paths(EDGES["duplicate rows"])
    assert structure_of(forest) == {(0, 5, frozenset(range(4)))}
    assert forest.length[forest.num_shared :].tolist() == [0] * 4
    assert forest.depth == 1


def test_a_segment_with_one_reader_is_part_of_its_tail() -> None:
    forest = from_paths([[("a", 2), ("b", 3), ("c", 4)], [("a", 2), ("d", 1)]])
    assert structure_of(forest) == {
        (0, 2, frozenset({0, 1})),
        (2, 7, frozenset({0})),
        (2, 1, frozenset({1})),
    }


@pytest.mark.parametrize("batch", [256, 1024])
def test_a_thousand_rows(batch: int) -> None:
    counts = random_counts(5, batch=batch, nodes=300, longest_run=40, longest_tail=9)
    paths = with_slots(counts, seed=6)
    forest = PrefixForest.from_paths(paths)
    check_forest(forest, lengths_of(counts).tolist())
    compared = PrefixForest.from_kv_indices(*kv_indices_of(paths))
    assert structure_of(compared) == structure_of(forest)


def test_a_path_thousands_of_nodes_deep() -> None:
    depth = 5000
    node = np.arange(depth, dtype=np.int32)
    forest = PrefixForest.from_radix_paths(RadixPaths(node - 1, node + 1, node), node + 2)
    assert forest.num_shared == depth - 1
    assert forest.depth == depth


def test_rows_that_prove_nothing_are_private() -> None:
    lengths = np.array([3, 0, 5], np.int32)
    forest = PrefixForest.from_radix_paths(RadixPaths.private(3), lengths)
    check_forest(forest, [3, 0, 5])
    assert forest.num_shared == 0


def test_a_proof_beyond_a_rows_tokens_is_not_used_for_that_row() -> None:
    chain = RadixPaths(*(np.array(v, np.int32) for v in ([-1, 0, 1], [4, 8, 12], [2, 2, 2])))
    forest = PrefixForest.from_radix_paths(chain, np.array([12, 11, 7], np.int32))
    check_forest(forest, [12, 11, 7])
    assert structure_of(forest) == {
        (0, 4, frozenset({0, 1, 2})),
        (4, 4, frozenset({0, 1})),
        (8, 4, frozenset({0})),
        (8, 3, frozenset({1})),
        (4, 3, frozenset({2})),
    }


def test_the_tokens_being_decoded_stay_private() -> None:
    proven = RadixPaths(*(np.array(v, np.int32) for v in ([-1, 0], [4, 8], [1, 1])))
    lengths = np.array([8, 9], np.int32)
    assert structure_of(PrefixForest.from_radix_paths(proven, lengths, private_tokens=1)) == {
        (0, 4, frozenset({0, 1})),
        (4, 4, frozenset({0})),
        (4, 5, frozenset({1})),
    }


def test_slots_that_part_and_meet_again_are_shared_up_to_the_parting_only() -> None:
    forest = PrefixForest.from_kv_indices([0, 4, 8], [1, 2, 3, 9, 1, 2, 7, 9])
    assert structure_of(forest) == {
        (0, 2, frozenset({0, 1})),
        (2, 2, frozenset({0})),
        (2, 2, frozenset({1})),
    }


@given(COUNTS)
def test_a_dictionary_keeps_the_structure(counts: Counts) -> None:
    forest = from_paths(counts)
    copy = PrefixForest.from_dict(forest.to_dict())
    assert copy.to_dict() == forest.to_dict()
    assert copy.kv_slots is None


def test_tensors_are_accepted_without_torch_being_needed() -> None:
    torch = pytest.importorskip("torch")
    plain = PrefixForest.from_kv_indices([0, 3, 6], [5, 6, 7, 5, 6, 8])
    tensors = torch.tensor([0, 3, 6]), torch.tensor([5, 6, 7, 5, 6, 8])
    forest = PrefixForest.from_kv_indices(*tensors)
    assert forest.to_dict() == plain.to_dict()
    assert forest.kv_slots.tolist() == plain.kv_slots.tolist()


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([[("a", [1]), ("b", [2])], [("b", [2])]], "'b' follows None in row 1 but 'a'"),
        ([[("a", [1, 2])], [("a", [1, 3])]], "'a' has other KV slots in row 1"),
        ([[("a", [1, 2])], [("a", [1])]], "'a' has other KV slots in row 1"),
        ([[("a", [[1, 2]])]], "one-dimensional integer array"),
        ([[("a", [0.5])]], "one-dimensional integer array"),
        ([[("a", [3, -1])]], r"\[0, 2\^31\), got -1..3"),
        ([[("a", [2**31])]], r"\[0, 2\^31\)"),
    ],
)
def test_bad_paths_are_refused(paths: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrefixForest.from_paths(paths)


@pytest.mark.parametrize(
    ("indptr", "indices", "message"),
    [
        ([0, 2], [1, 2, 3], r"end at len\(kv_indices\) = 3"),
        ([1, 3], [1, 2, 3], "start at 0"),
        ([], [], "one-dimensional"),
        ([[0, 1]], [4], "one-dimensional"),
        ([0, 2, 1, 3], [1, 2, 3], "decreases at row 1"),
        ([0, 1], [0.5], "integer"),
        ([0, 1], [-4], "got -4..-4"),
    ],
)
def test_bad_kv_indices_are_refused(indptr: list, indices: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrefixForest.from_kv_indices(indptr, indices)


def test_lengths_must_match_the_paths() -> None:
    with pytest.raises(ValueError, match=r"lengths has shape \(2,\), but the paths describe 3"):
        PrefixForest.from_radix_paths(RadixPaths.private(3), np.array([1, 2], np.int32))


def test_radix_paths_must_have_matching_shapes() -> None:
    one, two = np.zeros(1, np.int32), np.zeros(2, np.int32)
    with pytest.raises(ValueError, match="RadixPaths"):
        RadixPaths(one, two, one)
    with pytest.raises(ValueError, match="RadixPaths"):
        RadixPaths(one, one, np.zeros((1, 1), np.int32))
