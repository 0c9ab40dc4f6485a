"""The forest that C builds from radix paths is the one that Python builds, element for element."""

from __future__ import annotations

import ctypes
import os
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_paths import NODE, ROW, paths_of

from sglang_codec.planning import native
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.paths import RadixPaths
from sglang_codec.testing import (
    Counts,
    check_forest,
    lengths_of,
    radix_paths_of,
    random_counts,
    tree_counts,
)

# not `native.is_available`: where the sources do not compile, these tests fail
pytestmark = pytest.mark.skipif(
    not os.environ.get("CC") and not any(map(shutil.which, ("cc", "gcc", "clang"))),
    reason="no C compiler",
)

PER_ROW = ("order", "lengths")
PER_NODE = ("parent", "start", "length", "first", "last")
UNTOUCHED = -(1 << 30)

PAIR = st.tuples(st.integers(0, 99), st.sampled_from((0, 0, 1, 2, 5, 17)))
COUNTS = st.builds(tree_counts, st.lists(PAIR, max_size=10), st.lists(PAIR, max_size=10))
PRIVATE = st.sampled_from((0, 1, 3))
SHAPES = {
    "random": lambda rng, nodes: rng.integers(0, 1 << 30, nodes),
    "chain": lambda rng, nodes: np.arange(nodes),
    "roots": lambda rng, nodes: np.zeros(nodes, np.int64),
    "one root": lambda rng, nodes: np.minimum(np.arange(nodes), 1),
    "two children": lambda rng, nodes: (np.arange(nodes) + 1) // 2,
    "deep": lambda rng, nodes: np.maximum(np.arange(nodes) - rng.integers(0, 3, nodes), 0),
}


class Paths(ctypes.Structure):
    _fields_ = [
        ("batch", ctypes.c_int32),
        ("num_paths", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("parent", "end", "leaf", "lengths")),
        ("private_tokens", ctypes.c_int32),
    ]


def forest_in_c(paths: RadixPaths, lengths: np.ndarray, private_tokens: int) -> PrefixForest:
    codec_forest = native.library().codec_forest
    codec_forest.argtypes = [ctypes.POINTER(Paths), ctypes.c_void_p]
    codec_forest.restype = ctypes.c_int32
    batch = paths.batch
    arrays = [
        np.ascontiguousarray(a, np.int32) for a in (paths.parent, paths.end, paths.leaf, lengths)
    ]
    given_arrays = [array.copy() for array in arrays]
    out = np.full(12 * batch + 1, UNTOUCHED, np.int32)
    addresses = [array.ctypes.data for array in arrays]
    given_paths = Paths(batch, len(paths.parent), *addresses, private_tokens)
    nodes = codec_forest(given_paths, out.ctypes.data)
    assert batch <= nodes <= batch + max(batch - 1, 0), "more shared runs than there can be"
    assert all(map(np.array_equal, arrays, given_arrays)), "the paths were written to"
    sizes = [batch] * len(PER_ROW) + [nodes] * len(PER_NODE)
    *parts, rest = np.split(out, np.cumsum(sizes))
    assert (rest == UNTOUCHED).all()
    return PrefixForest(**dict(zip(PER_ROW + PER_NODE, parts, strict=True)))


def assert_same(paths: RadixPaths, lengths: np.ndarray, private_tokens: int) -> PrefixForest:
    python = PrefixForest.from_radix_paths(paths, lengths, private_tokens=private_tokens)
    ours = forest_in_c(paths, lengths, private_tokens)
    assert ours.to_dict() == python.to_dict()
    return ours


@given(st.lists(NODE, max_size=12), st.lists(ROW, max_size=16), PRIVATE)
def test_any_tree_and_any_rows(
    nodes: list[tuple[int, int]], rows: list[tuple[int, int]], private_tokens: int
) -> None:
    paths, lengths = paths_of(nodes, rows)
    check_forest(assert_same(paths, lengths, private_tokens), lengths.tolist())


@given(COUNTS, PRIVATE, st.integers(0, 40), st.sets(st.integers(0, 9)))
def test_paths_that_a_radix_tree_proves(
    counts: Counts, private_tokens: int, more: int, unproven: set[int]
) -> None:
    paths = radix_paths_of(counts)
    paths.leaf[[row for row in unproven if row < paths.batch]] = -1
    assert_same(paths, lengths_of(counts) + more, private_tokens)


@pytest.mark.parametrize("shape", SHAPES)
@given(st.integers(0, 1 << 30), st.integers(1, 1100), st.integers(0, 700), PRIVATE)
def test_hundreds_of_rows(
    shape: str, seed: int, batch: int, nodes: int, private_tokens: int
) -> None:
    rng = np.random.default_rng(seed)
    choices = SHAPES[shape](rng, nodes)
    tokens, more = rng.integers(1, 9, nodes), rng.integers(-9, 30, batch)
    leaves = rng.integers(0, 1 << 30, batch)
    paths, lengths = paths_of(
        list(zip(choices.tolist(), tokens.tolist(), strict=True)),
        list(zip(leaves.tolist(), more.tolist(), strict=True)),
    )
    forest = assert_same(paths, lengths, private_tokens)
    assert forest.batch == batch


@pytest.mark.parametrize("private_tokens", [0, 1, 3])
@pytest.mark.parametrize("batch", [256, 1024])
def test_a_thousand_rows_of_a_radix_tree(batch: int, private_tokens: int) -> None:
    counts = random_counts(5, batch=batch, nodes=300, longest_run=40, longest_tail=9)
    forest = assert_same(radix_paths_of(counts), lengths_of(counts), private_tokens)
    assert forest.num_shared > 100


@pytest.mark.parametrize("private_tokens", [0, 1, 3])
@pytest.mark.parametrize("batch", [0, 1, 2, 5])
def test_rows_that_prove_nothing(batch: int, private_tokens: int) -> None:
    lengths = np.arange(batch, dtype=np.int32)
    forest = assert_same(RadixPaths.private(batch), lengths, private_tokens)
    assert forest.num_shared == 0


def test_a_tree_that_no_row_is_in() -> None:
    chain = np.arange(4, dtype=np.int32)
    for batch in (0, 3):
        paths = RadixPaths(chain - 1, chain + 1, np.full(batch, -1, np.int32))
        assert assert_same(paths, np.full(batch, 9, np.int32), 0).num_shared == 0


def test_as_many_runs_as_there_can_be() -> None:
    node = np.arange(1023, dtype=np.int32)
    paths = RadixPaths(node - 1, node + 1, np.append(node, 1022).astype(np.int32))
    assert assert_same(paths, np.full(1024, 1030, np.int32), 1).num_shared == 1023


@pytest.mark.parametrize("beyond", [0, 1, 4000, 9000])
def test_a_path_thousands_of_nodes_deep(beyond: int) -> None:
    node = np.arange(5000, dtype=np.int32)
    lengths = np.maximum(node + 2 - beyond, 0)
    assert_same(RadixPaths(node - 1, node + 1, node), lengths, 1)
