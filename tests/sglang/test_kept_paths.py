"""Paths kept while SGLang's tree is split, grows and is evicted, beside paths read anew."""

from __future__ import annotations

import itertools
from array import array
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock
from weakref import ref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey
from step_record import proven_common

from sglang_codec.patches.kept_paths import KeptBatches
from sglang_codec.patches.tree_readers import ParentWalkReader, PathInfoReader, TreeReader, weak
from sglang_codec.planning.paths import RadixPaths


class Request:
    """A running request: it holds a lock on its node, as SGLang's does."""

    def __init__(self, tree: Tree, prompt: list[int]) -> None:
        self.prompt, self.node = prompt, tree.cache.root_node
        self.owned = 0
        tree.hold(self, tree.match(prompt))

    @property
    def state(self) -> tuple[Any, ...]:
        return weak(self.node), self.owned, 0, 0


class Tree:
    """SGLang's `RadixCache`, and its paths as its newer cores give them."""

    def __init__(self) -> None:
        allocator = Mock(device=torch.device("cpu"))
        self.cache = RadixCache.create_simulated(mock_allocator=allocator)
        self._slot = 0

    def match(self, tokens: list[int]) -> Any:
        key = RadixKey(array("q", tokens), None)
        return self.cache.match_prefix(MatchPrefixParams(key=key)).last_device_node

    def insert(self, tokens: list[int]) -> Any:
        key = RadixKey(array("q", tokens), None)
        slots = torch.arange(self._slot, self._slot + len(tokens))
        self._slot += len(tokens)
        self.cache.insert(InsertParams(key=key, value=slots))
        return self.match(tokens)

    def hold(self, request: Request, node: Any) -> None:
        self.cache.inc_lock_ref(node)
        self.cache.dec_lock_ref(request.node)
        request.node, request.owned = node, length_of(node)

    def collect_path_info(self, nodes: list[int]) -> list[list[Any]]:
        by_id, stack = {}, [self.cache.root_node]
        while stack:
            node = stack.pop()
            by_id[node.id] = node
            stack.extend(node.children.values())
        return [[info_of(one) for one in path_of(by_id[node])] for node in nodes]


def path_of(node: Any) -> list[Any]:
    path = []
    while node.parent is not None:
        path.append(node)
        node = node.parent
    return path[::-1]


def length_of(node: Any) -> int:
    return sum(len(one.key) for one in path_of(node))


def info_of(node: Any) -> Any:
    end, tokens = length_of(node), len(node.key)
    return SimpleNamespace(
        node_id=node.id,
        path_start=end - tokens,
        path_end=end,
        full_value_len=tokens if node.lock_ref else None,
        num_children=len(node.children),
    )


class Batches:
    """Requests in one order after another, read by one reader that keeps what it read."""

    def __init__(self, tree: Tree, kind: str) -> None:
        self.by_id = kind == "path info"
        cache = SimpleNamespace(resolve_node_handle=lambda handle: handle)
        self.reader: TreeReader = PathInfoReader(tree) if self.by_id else ParentWalkReader(cache)
        self.kept = KeptBatches(self.reader)

    def read(self, requests: list[Request], kept: KeptBatches | None = None) -> RadixPaths:
        states = [request.state for request in requests]
        handles = [handle().id if self.by_id else handle for handle, *_ in states]
        others = list(zip(*states, strict=True))[1:] if states else [()] * 3
        columns = (tuple(map(ref, requests)), tuple(handles), *others)
        return (kept or self.kept).read(columns)

    def read_anew(self, requests: list[Request]) -> RadixPaths:
        return self.read(requests, KeptBatches(self.reader))


def as_step(paths: RadixPaths) -> dict[str, Any]:
    return {name: getattr(paths, name).tolist() for name in ("parent", "end", "leaf")}


def common(one: Request, other: Request) -> int:
    """Tokens of the nodes that both paths pass."""
    both = zip(path_of(one.node), path_of(other.node), strict=False)
    return sum(len(node.key) for node, same in both if node is same)


# few tokens, so that prompts part and meet at any place
PROMPT = st.lists(st.integers(0, 1), min_size=1, max_size=7)
EVENTS = {
    "starts": PROMPT,
    "starts in the tree": PROMPT,
    "starts ahead": PROMPT,
    "grows": st.integers(0, 99),
    "ends": st.integers(0, 99),
    "swaps": st.integers(0, 99),
    "passes": PROMPT,
    "evicts": st.integers(1, 20),
}
EVENT = st.one_of(
    st.tuples(st.just(event), value, st.booleans()) for event, value in EVENTS.items()
)


@pytest.mark.parametrize("kind", ["nodes", "path info"])
@settings(max_examples=300, deadline=None)
@given(st.lists(EVENT, min_size=2, max_size=20))
def test_kept_paths_are_those_of_the_tree(kind: str, events: list[tuple[str, Any, bool]]) -> None:
    tree = Tree()
    batches, running = Batches(tree, kind), []
    for event, value, is_read in events:
        happen(event, value, tree, running)
        if is_read:
            check(batches, running)
    check(batches, running)


def happen(event: str, value: Any, tree: Tree, running: list[Request]) -> None:
    if event == "passes":  # a request that no batch sees: it splits what others hold
        tree.insert(value)
    elif event == "evicts":
        tree.cache.evict(EvictParams(num_tokens=value))
    elif event.startswith("starts"):
        if event == "starts in the tree":
            tree.insert(value)
        # after a mixed batch prompts go ahead of the rows that decode
        place = 0 if event == "starts ahead" else len(running)
        running.insert(place, Request(tree, value))
    elif running:
        request = running[value % len(running)]
        if event == "grows":  # its prompt becomes a part of the tree
            tree.hold(request, tree.insert(request.prompt))
        else:
            running.remove(request)
            if event == "swaps":
                running.insert(0, request)
            else:
                tree.hold(request, tree.cache.root_node)


def check(batches: Batches, running: list[Request]) -> None:
    kept, anew = as_step(batches.read(running)), as_step(batches.read_anew(running))
    starts = [kept["end"][above] if above >= 0 else 0 for above in kept["parent"]]
    assert all(above < node for node, above in enumerate(kept["parent"]))
    assert all(start < end for start, end in zip(starts, kept["end"], strict=True))
    for one, other in itertools.combinations(range(len(running)), 2):
        expected = common(running[one], running[other])
        assert proven_common(kept, one, other) == proven_common(anew, one, other) == expected
    # nothing but what two rows at least read
    assert len(kept["end"]) < max(len(running), 1)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("kind", ["nodes", "path info"])
def test_who_joins_costs_its_own_path(kind: str, ahead: bool) -> None:
    tree = Tree()
    batches = Batches(tree, kind)
    running = [Request(tree, [0] * 5)]
    tree.hold(running[0], tree.insert([0] * 5))
    looked: list[Any] = []
    chains = batches.reader.chains
    batches.reader.chains = lambda keys, known: (looked.extend(keys), chains(keys, known))[1]
    for end in range(1, 9):
        tree.insert([0] * 5 + [end])
        running.insert(0 if ahead else end, Request(tree, [0] * 5 + [end]))
        batches.read(running)
    assert len(looked) == len(running)
    batches.read(running[1:])
    assert len(looked) == len(running)


def test_batches_that_take_turns_keep_their_paths() -> None:
    tree = Tree()
    tree.insert([0] * 5)
    batches = Batches(tree, "nodes")
    batches.kept = KeptBatches(batches.reader, most_kept=2)
    first, second = ([Request(tree, [0] * 5) for _ in range(2)] for _ in range(2))
    batches.read(first)
    batches.read(second)
    batches.reader.chains = Mock(side_effect=AssertionError("all of it is known"))
    for running in (second, first, first, second):
        assert batches.read(running).end.tolist() == [5]
    # a batch is known by any request that is still there
    del first[0]
    assert batches.read(first).leaf.tolist() == [-1]


def test_the_same_paths_are_the_same_object() -> None:
    """So that a plan is found to serve on without a look at them."""
    tree = Tree()
    tree.insert([0] * 5)
    batches = Batches(tree, "nodes")
    running = [Request(tree, [0] * 5) for _ in range(2)]
    paths = batches.read(running)
    tree.hold(running[0], tree.insert([0] * 7))
    assert batches.read(running) is paths
    running.append(Request(tree, [0] * 7))
    longer = batches.read(running)
    assert as_step(longer) == {"parent": [-1, 0], "end": [5, 7], "leaf": [1, 0, 1]}


def test_who_moves_while_another_leaves_is_read_again() -> None:
    tree = Tree()
    tree.insert([0] * 5)
    batches = Batches(tree, "nodes")
    running = [Request(tree, [0] * 5) for _ in range(5)]
    batches.read(running)
    longer = tree.insert([0] * 7)
    for request in running[3:]:
        tree.hold(request, longer)
    del running[1]
    paths = as_step(batches.read(running))
    assert paths == {"parent": [-1, 0], "end": [5, 7], "leaf": [0, 0, 1, 1]}


def test_after_a_tree_has_raised_everything_is_read_again() -> None:
    tree = Tree()
    tree.insert([0] * 5)
    batches = Batches(tree, "nodes")
    running = [Request(tree, [0] * 5) for _ in range(2)]
    batches.read(running)
    running.append(Request(tree, [0] * 5))
    chains, batches.reader.chains = batches.reader.chains, Mock(side_effect=RuntimeError)
    with pytest.raises(RuntimeError):
        batches.read(running)
    batches.reader.chains = chains
    assert batches.read(running).leaf.tolist() == [0, 0, 0]


def test_a_row_that_is_not_the_trees_to_its_end_is_looked_at_each_time() -> None:
    """As it may be after a split that only its own path shows."""
    tree = Tree()
    tree.insert([0] * 5)
    batches = Batches(tree, "nodes")
    running = [Request(tree, [0] * 5) for _ in range(2)]
    running[0].owned = 3
    assert batches.read(running).end.tolist() == []
    running.append(Request(tree, [0] * 3))
    assert as_step(batches.read(running)) == {"parent": [-1], "end": [3], "leaf": [0, 0, 0]}
