"""One reader per tree API: what SGLang's radix tree proves about a decode batch's KV slots.

Everything is duck-typed, since three tree APIs follow one another in seven releases. A reader never
guesses: a handle that is unknown or the root, or a node without a device value, ends the proof, and
the row is private from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from sglang_codec.patches.fallbacks import FALLBACKS
from sglang_codec.patches.path_builder import ROOT, PathBuilder, Proof
from sglang_codec.planning.paths import RadixPaths


class TreeReader(Protocol):
    """Reads root-to-node paths; call it on the scheduler thread, inside `run_batch`.

    Nodes that only one row passes are left out: they share nothing.
    """

    name: str

    def read(self, handles: Sequence[Any], owned_by_tree: Sequence[int]) -> RadixPaths:
        """Paths of the rows with these `req.last_node` handles and tree-owned token counts."""
        ...


class NoneReader:
    """For a tree that is disabled or cannot be read: every row is private."""

    def __init__(self, why: str) -> None:
        self.name = f"none ({why})"

    def read(self, handles: Sequence[Any], owned_by_tree: Sequence[int]) -> RadixPaths:
        return RadixPaths.private(len(handles))


class PathInfoReader:
    """SGLang 0.5.22 and newer: `tree_core.collect_path_info`, on the Python and the Rust core."""

    name = "collect_path_info"

    def __init__(self, tree_core: Any) -> None:
        self._core = tree_core

    def read(self, handles: Sequence[Any], owned_by_tree: Sequence[int]) -> RadixPaths:
        distinct = [h for h in dict.fromkeys(handles) if _is_node_id(h)]
        paths = dict(zip(distinct, self._paths(distinct), strict=True))
        rows = [paths.get(handle, ()) for handle in handles]
        readers = Counter(node.node_id for path in rows for node in path)
        builder = PathBuilder()
        shared = {h: [n for n in path if readers[n.node_id] > 1] for h, path in paths.items()}
        proofs = {handle: _add_path(builder, path) for handle, path in shared.items()}
        return builder.finish([proofs.get(h, ROOT).index for h in handles], owned_by_tree)

    def _paths(self, handles: list[int]) -> Sequence[Sequence[Any]]:
        try:
            return self._core.collect_path_info(handles)
        except KeyError:
            # one missing handle fails the whole call: find it
            return [self._path(handle) for handle in handles]

    def _path(self, handle: int) -> Sequence[Any]:
        try:
            return self._core.collect_path_info([handle])[0]
        except KeyError:
            FALLBACKS.record("node handle is not in the tree", handle)
            return ()


class ParentWalkReader:
    """`RadixCache` and the Python core of `UnifiedRadixCache`: nodes with parent, key and value."""

    name = "parent walk"

    def __init__(self, tree: Any) -> None:
        self._resolve = tree.resolve_node_handle

    def read(self, handles: Sequence[Any], owned_by_tree: Sequence[int]) -> RadixPaths:
        nodes = self._nodes(dict.fromkeys(handles))
        # where a second row comes by, it and all above it are shared; nothing else is looked at,
        # for most nodes of a batch are the ends of a single prompt. A node without a parent is the
        # root, or a streaming session's sentinel, which is no tree node at all.
        passed: set[Any] = set()
        met: dict[Any, None] = {}
        for handle in handles:
            node = nodes[handle]
            while (parent := getattr(node, "parent", None)) is not None:
                if node in passed:
                    met[node] = None
                    break
                passed.add(node)
                node = parent
        builder = PathBuilder()
        for node in met:
            _prove(builder, node)
        proofs = builder.proofs
        leaf_of = {}
        for handle, node in nodes.items():
            while node not in proofs and node is not None:
                node = getattr(node, "parent", None)
            leaf_of[handle] = -1 if node is None else proofs[node].index
        return builder.finish([leaf_of[handle] for handle in handles], owned_by_tree)

    def _nodes(self, handles: Iterable[Any]) -> dict[Any, Any]:
        resolve = self._resolve
        try:
            return {h: None if h is None else resolve(h) for h in handles}
        except KeyError:
            # one missing handle fails the whole call: find it
            return {handle: self._node(handle) for handle in handles}

    def _node(self, handle: Any) -> Any:
        if handle is None:
            return None
        try:
            return self._resolve(handle)
        except KeyError:
            FALLBACKS.record("node handle is not in the tree", handle)
            return None


class SessionReader:
    """Reads the locked tree node in place of a streaming session's stand-in for it.

    From its second turn on (0.5.23: in the first already) a session's request has a `_VirtualNode`
    as its handle. Its row is the session's from the first turn on: the first `cache_protected_len`
    slots are the tree's, below a node that is locked as long as the session lives.
    """

    def __init__(self, reader: TreeReader, session: Any) -> None:
        self.name = reader.name
        self._reader, self._session = reader, session

    def read(self, handles: Sequence[Any], owned_by_tree: Sequence[int]) -> RadixPaths:
        if slots := self._session.slots:
            locked = {slot.virtual_node: _locked_node(slot) for slot in slots.values()}
            handles = [locked.get(handle, handle) for handle in handles]
        return self._reader.read(handles, owned_by_tree)


def _locked_node(slot: Any) -> Any:
    """The handle of the node that a session's slot has locked, None if it has none."""
    return slot.last_node if hasattr(slot, "last_node") else getattr(slot.lock, "node", None)


def _prove(builder: PathBuilder, node: Any) -> None:
    """Register a node and all above it."""
    chain = []
    while node not in builder.proofs and node.parent is not None:
        chain.append(node)
        node = node.parent
    proof = builder.proofs.get(node, ROOT)
    for node in reversed(chain):
        length = len(node.key)
        proof = builder.add(node, proof, length, on_device=_device_tokens(node) == length)


def select_reader(tree_cache: Any) -> TreeReader:
    """The reader for this tree cache, wrapped or not, with streaming sessions or without."""
    tree = unwrap(tree_cache)
    reader = _select_tree_reader(tree)
    # the wrapper around the tree, or a part of it
    session = tree_cache if tree is not tree_cache else getattr(tree, "session", None)
    if isinstance(reader, NoneReader) or not hasattr(session, "slots"):
        return reader
    return SessionReader(reader, session)


def _select_tree_reader(tree: Any) -> TreeReader:
    if getattr(tree, "disable", False):
        return NoneReader("radix cache disabled")
    core = getattr(tree, "tree_core", None)
    if hasattr(core, "collect_path_info"):
        return PathInfoReader(core)
    if not hasattr(tree, "resolve_node_handle") or not hasattr(tree, "root_node_handle"):
        return NoneReader(f"{type(tree).__name__} has no nodes")
    try:
        root = tree.resolve_node_handle(tree.root_node_handle())
    except (AttributeError, NotImplementedError) as error:
        FALLBACKS.record(f"the nodes of {type(tree).__name__} cannot be read", str(error))
        return NoneReader(f"{type(core or tree).__name__} cannot be read")
    if not hasattr(root, "parent") or not hasattr(root, "key"):
        return NoneReader(f"{type(tree).__name__} has no nodes")
    return ParentWalkReader(tree)


def unwrap(tree_cache: Any) -> Any:
    """The tree inside a `StreamingSession`, which does not forward `resolve_node_handle`."""
    while (inner := getattr(tree_cache, "inner", None)) is not None:
        tree_cache = inner
    return tree_cache


def _add_path(builder: PathBuilder, path: Sequence[Any]) -> Proof:
    proof = ROOT
    for node in path:
        known = builder.proofs.get(node.node_id)
        if known is None:
            length = node.path_end - node.path_start
            resident = node.full_value_len == length
            known = builder.add(node.node_id, proof, length, on_device=resident)
        proof = known
    return proof


def _is_node_id(handle: Any) -> bool:
    return isinstance(handle, int)


def _device_tokens(node: Any) -> int | None:
    """How many KV slots on the device the node owns for full attention, None if it has none."""
    components = getattr(node, "component_data", None)
    if components is not None:
        # component 0 is FULL in every release that has components
        value = components[0].value
    else:
        # an evicted RadixCache node keeps its value, and an unlocked one is no running request's
        value = node.value if node.lock_ref > 0 else None
    return None if value is None else len(value)
