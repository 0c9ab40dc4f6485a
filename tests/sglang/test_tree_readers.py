"""Tree readers on SGLang's node types and on trees with holes; test_attach.py has whole trees."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any
from weakref import ref

import numpy as np
import pytest
import torch
from sglang.srt.mem_cache.radix_cache import TreeNode

from sglang_codec.patches.fallbacks import FALLBACKS
from sglang_codec.patches.kept_paths import KeptBatches
from sglang_codec.patches.tree_readers import (
    NoneReader,
    ParentWalkReader,
    PathInfoReader,
    TreeReader,
    select_reader,
    weak,
)
from sglang_codec.planning.paths import RadixPaths

MANY = 1 << 20


@pytest.fixture(autouse=True)
def _counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FALLBACKS, "counts", type(FALLBACKS.counts)())


class Tree:
    """Nodes of a tree as name -> (parent name, tokens); `missing` ones have no device value."""

    def __init__(self, missing: Iterable[str] = (), **nodes: tuple[str, int]) -> None:
        self.spans: dict[str, tuple[str, int]] = nodes
        self.missing = set(missing)
        self.ids = {name: number for number, name in enumerate(["root", *nodes], start=10)}


class InfoCore:
    """A `tree_core` with `collect_path_info`, as SGLang's interface defines it."""

    def __init__(self, tree: Tree) -> None:
        self.tree, self.calls = tree, 0

    def collect_path_info(self, handles: list[int]) -> tuple[Any, ...]:
        self.calls += 1
        return tuple(self._path(handle) for handle in handles)

    def _path(self, handle: int) -> tuple[Any, ...]:
        names = {number: name for name, number in self.tree.ids.items()}
        name, spans = names[handle], []
        while name != "root":
            spans.append((name, *self.tree.spans[name]))
            name = self.tree.spans[name][0]
        path, start = [], 0
        for name, parent, tokens in reversed(spans):
            path.append(
                SimpleNamespace(
                    node_id=self.tree.ids[name],
                    parent_id=self.tree.ids[parent],
                    path_start=start,
                    path_end=start + tokens,
                    full_value_len=None if name in self.tree.missing else tokens,
                    num_children=sum(p == name for p, _ in self.tree.spans.values()),
                )
            )
            start += tokens
        return tuple(path)


class Virtual:
    """A stand-in for a node, as of streaming sessions."""


class NodeTree:
    """A tree cache of SGLang's own `TreeNode`s."""

    def __init__(self, tree: Tree, *, components: bool = False) -> None:
        self.nodes = {"root": self._node(None, 0, True)}
        for name, (parent, tokens) in tree.spans.items():
            node = self._node(self.nodes[parent], tokens, name not in tree.missing)
            if components:
                node.component_data = [SimpleNamespace(value=node.value)]
                node.value = None
            self.nodes[name] = node
        self.handles = {tree.ids[name]: node for name, node in self.nodes.items()}

    @staticmethod
    def _node(parent: TreeNode | None, tokens: int, resident: bool) -> TreeNode:
        node = TreeNode()
        node.parent, node.key, node.lock_ref = parent, [0] * tokens, 1
        if parent is not None:
            parent.children[len(parent.children)] = node
        node.value = torch.zeros(tokens, dtype=torch.int64) if resident else None
        return node

    def resolve_node_handle(self, handle: Any) -> Any:
        return self.handles[handle] if isinstance(handle, int) else handle

    def root_node_handle(self) -> Any:
        return self.nodes["root"]


READERS = ("path info", "nodes", "components")


def reader_of(kind: str, tree: Tree) -> TreeReader:
    if kind == "path info":
        return PathInfoReader(InfoCore(tree))
    return ParentWalkReader(NodeTree(tree, components=kind == "components"))


class Request:
    """Only who it is matters."""


def read_rows(reader: TreeReader, handles: list[Any], owned: list[int]) -> RadixPaths:
    requests, number = [Request() for _ in handles], range(len(handles))
    rows = (map(ref, requests), map(weak, handles), owned, number, number)
    return KeptBatches(reader).read(tuple(map(tuple, rows)))


def read_twice(reader: TreeReader, handles: list[Any], owned: int = MANY) -> RadixPaths:
    """Every row has a twin behind all rows, so every node is shared."""
    return read_rows(reader, [*handles, *handles], [owned] * (2 * len(handles)))


def read(kind: str, tree: Tree, *names: str, owned: int = MANY) -> RadixPaths:
    return read_twice(reader_of(kind, tree), [tree.ids[name] for name in names], owned)


def ends(paths: RadixPaths, row: int) -> list[int]:
    """Ends of a row's path nodes, root first."""
    found, node = [], paths.leaf[row]
    while node >= 0:
        found.append(int(paths.end[node]))
        node = paths.parent[node]
    return found[::-1]


FORK = {"a": ("root", 4), "b": ("a", 3), "c": ("a", 5), "d": ("root", 2)}


@pytest.mark.parametrize("kind", READERS)
def test_paths_of_a_fork(kind: str) -> None:
    paths = read(kind, Tree(**FORK), "b", "c", "a", "b", "d", "root")
    assert [ends(paths, row) for row in range(6)] == [[4, 7], [4, 9], [4], [4, 7], [2], []]
    assert len(paths.end) == 4
    assert paths.leaf[0] == paths.leaf[3]
    assert paths.parent[paths.leaf[0]] == paths.parent[paths.leaf[1]] == paths.leaf[2]


@pytest.mark.parametrize("kind", READERS)
def test_what_a_single_row_passes_is_left_out(kind: str) -> None:
    reader = reader_of(kind, tree := Tree(**FORK))
    handles = [tree.ids[name] for name in ("d", "b", "c", "a")]
    paths = read_rows(reader, handles, [MANY] * 4)
    assert [ends(paths, row) for row in range(4)] == [[], [4], [4], [4]]
    assert len(paths.end) == 1
    # a second row at the same node makes it a shared one
    paths = read_rows(reader, [*handles, tree.ids["b"]], [MANY] * 5)
    assert [ends(paths, row) for row in range(5)] == [[], [4, 7], [4], [4], [4, 7]]


@pytest.mark.parametrize("kind", READERS)
def test_arrays_keep_the_contract(kind: str) -> None:
    paths = read(kind, Tree(**FORK), "c", "b", "d")
    assert all(array.dtype == np.int32 for array in (paths.parent, paths.end, paths.leaf))
    assert (paths.parent < np.arange(len(paths.parent))).all()
    starts = np.where(paths.parent < 0, 0, paths.end[paths.parent])
    assert (paths.end > starts).all()


@pytest.mark.parametrize("kind", READERS)
def test_nothing_is_proven_below_a_node_off_the_device(kind: str) -> None:
    deep = {"a": ("root", 4), "host": ("a", 3), "below": ("host", 2), "beside": ("a", 1)}
    tree = Tree(missing=["host"], **deep)
    for order in (["below", "host", "beside"], ["beside", "host", "below"]):
        paths = read(kind, tree, *order)
        by_name = {name: ends(paths, row) for row, name in enumerate(order)}
        assert by_name == {"below": [4], "host": [4], "beside": [4, 5]}


@pytest.mark.parametrize("kind", READERS)
def test_only_tokens_that_the_tree_owns_are_proven(kind: str) -> None:
    tree = Tree(**FORK)
    assert ends(read(kind, tree, "b", owned=7), 0) == [7]
    assert ends(read(kind, tree, "b", owned=6), 0) == [4]
    assert ends(read(kind, tree, "b", owned=3), 0) == []


@pytest.mark.parametrize("kind", READERS)
def test_handles_that_are_no_nodes_are_private(kind: str) -> None:
    reader = reader_of(kind, tree := Tree(**FORK))
    virtual = type("VirtualNode", (), {})()
    paths = read_twice(reader, [None, virtual, tree.ids["b"]])
    assert [ends(paths, row) for row in range(3)] == [[], [], [7]]
    assert not FALLBACKS.counts


@pytest.mark.parametrize("kind", READERS)
def test_a_handle_that_is_gone_is_private_and_counted(kind: str) -> None:
    reader = reader_of(kind, tree := Tree(**FORK))
    paths = read_twice(reader, [999, tree.ids["c"]])
    assert [ends(paths, row) for row in range(2)] == [[], [9]]
    assert list(FALLBACKS.counts) == ["node handle is not in the tree"]


def test_a_node_that_nobody_locks_proves_nothing() -> None:
    nodes = NodeTree(tree := Tree(**FORK))
    nodes.nodes["c"].lock_ref = 0  # an evicted node keeps its value
    paths = read_twice(ParentWalkReader(nodes), [tree.ids["c"], tree.ids["b"]])
    assert [ends(paths, row) for row in range(2)] == [[4], [4, 7]]


def test_distinct_handles_are_asked_for_in_one_call() -> None:
    core = InfoCore(tree := Tree(**FORK))
    handles = [tree.ids["b"], tree.ids["c"]] * 8
    read_rows(PathInfoReader(core), handles, [MANY] * len(handles))
    assert core.calls == 1


# which reader -----------------------------------------------------------------------------------



class Unreadable(NodeTree):
    """As the handles of a core without Python nodes are."""

    def resolve_node_handle(self, handle: Any) -> Any:
        raise NotImplementedError("not ported")


@pytest.mark.parametrize("has_core", [False, True])
def test_nodes_that_can_be_read_are_walked(has_core: bool) -> None:
    cache = NodeTree(tree := Tree(**FORK))
    if has_core:
        cache.tree_core = InfoCore(tree)
    assert select_reader(cache).name == "parent walk"


def test_paths_are_asked_for_where_nodes_cannot_be_read() -> None:
    cache = Unreadable(tree := Tree(**FORK))
    cache.tree_core = InfoCore(tree)
    assert select_reader(cache).name == "collect_path_info"
    assert not FALLBACKS.counts


def test_a_streaming_session_is_unwrapped() -> None:
    wrapper = SimpleNamespace(inner=SimpleNamespace(inner=NodeTree(Tree(**FORK))))
    assert isinstance(select_reader(wrapper), ParentWalkReader)


@pytest.mark.parametrize("kind", ["wrapper", "part of the tree"])
def test_a_turn_of_a_session_has_the_path_that_its_slot_locked(kind: str) -> None:
    cache = NodeTree(tree := Tree(**FORK))
    stand_in, empty, gone = Virtual(), Virtual(), Virtual()
    if kind == "wrapper":
        slot = SimpleNamespace(virtual_node=stand_in, last_node=cache.nodes["b"])
        none = SimpleNamespace(virtual_node=empty, last_node=None)
        cache = SimpleNamespace(inner=cache, slots={"s": slot, "t": none})
    else:
        slot = SimpleNamespace(virtual_node=stand_in, lock=SimpleNamespace(node=tree.ids["b"]))
        none = SimpleNamespace(virtual_node=empty, lock=None)
        cache.session = SimpleNamespace(slots={"s": slot, "t": none})
    reader = select_reader(cache)
    assert reader.name == "parent walk"
    handles, owned = [stand_in, tree.ids["b"], stand_in, empty, gone], [MANY, MANY, 6, MANY, MANY]
    paths = read_rows(reader, handles, owned)
    assert [ends(paths, row) for row in range(5)] == [[4, 7], [4, 7], [4], [], []]
    assert not FALLBACKS.counts


def test_a_disabled_tree_has_none() -> None:
    cache = NodeTree(Tree(**FORK))
    cache.disable = True
    assert select_reader(cache).name == "none (radix cache disabled)"


def test_an_unreadable_core_is_named_and_counted() -> None:
    reader = select_reader(Unreadable(Tree(**FORK)))
    assert reader.name == "none (Unreadable cannot be read)"
    assert dict(FALLBACKS.counts) == {"the nodes of Unreadable cannot be read": 1}


@pytest.mark.parametrize("cache", [SimpleNamespace(), object()])
def test_an_object_that_is_no_tree_has_none(cache: Any) -> None:
    reader = select_reader(cache)
    assert isinstance(reader, NoneReader)
    assert read_rows(reader, [None, 3], [0, 5]).leaf.tolist() == [-1, -1]


def test_whatever_a_tree_raises_the_batch_is_private_and_counted() -> None:
    from sglang_codec.patches.codec_batch import CodecBatch

    class Broken(NoneReader):
        def chains(self, handles: Any, known: Any) -> Any:
            raise RuntimeError("no idea")

    states = (("a", "b"), (1, 2), (0, 0), (0, 1), (0, 0))
    batch = CodecBatch((2, states, None), KeptBatches(Broken("broken")), 2)
    assert batch.read().leaf.tolist() == [-1, -1]
    assert dict(FALLBACKS.counts) == {"reading the tree failed with RuntimeError": 1}
