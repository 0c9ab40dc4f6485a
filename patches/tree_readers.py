"""One reader per tree API: what SGLang's radix tree says of the nodes above a request's.

Everything is duck-typed, since three tree APIs follow one another in seven releases. A reader never
guesses: above a handle that is unknown or the root there is nothing.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterator, Sequence
from typing import Any, Protocol
from weakref import ref

from sglang_codec.patches.fallbacks import FALLBACKS

# A tree node on a path: its key, which keeps it not alive; its tokens; whether the KV slots of all
# of them are in the pool, for as long as a running request holds the node; its children. Tuples
# without names, because a batch that is all new reads thousands.
Link = tuple[Hashable, int, bool, int]
# The key of the first node above a handle's that was known (None: the root), and the nodes below
# that, deepest first.
Chain = tuple[Hashable | None, list[Link]]


class TreeReader(Protocol):
    """Looks at paths; on the scheduler thread, inside `run_batch`."""

    name: str

    def resolved(self, handles: Sequence[Any]) -> Sequence[Any]:
        """The handles of tree nodes for these `req.last_node`, weak as they are given."""
        ...

    def keys(self, handles: Sequence[Any]) -> Sequence[Hashable | None]:
        """The keys of the nodes with these handles, None where there is none."""
        ...

    def chains(self, keys: Sequence[Any], known: Container[Hashable]) -> Iterator[Chain]:
        """For each of `keys` the nodes from it up to the first whose key is `known` by then."""
        ...

    def chains_above(self, keys: Sequence[Any], known: Container[Hashable]) -> Iterator[Chain]:
        """The same without the nodes of `keys` themselves, which are nodes of the tree."""
        ...


class NoneReader:
    """For a tree that is disabled or cannot be read: every row is private."""

    def __init__(self, why: str) -> None:
        self.name = f"none ({why})"

    def resolved(self, handles: Sequence[Any]) -> Sequence[Any]:
        return handles

    def keys(self, handles: Sequence[Any]) -> Sequence[Hashable | None]:
        return [None for _ in handles]

    def chains(self, keys: Sequence[Any], known: Container[Hashable]) -> Iterator[Chain]:
        return ((None, []) for _ in keys)

    def chains_above(self, keys: Sequence[Any], known: Container[Hashable]) -> Iterator[Chain]:
        return ((None, []) for _ in keys)


class PathInfoReader:
    """SGLang's Rust core from 0.5.22 on: `tree_core.collect_path_info`."""

    name = "collect_path_info"

    def __init__(self, tree_core: Any) -> None:
        self._core = tree_core

    def resolved(self, handles: Sequence[Any]) -> Sequence[Any]:
        return handles

    def keys(self, handles: Sequence[Any]) -> Sequence[Hashable | None]:
        return [handle if isinstance(handle, int) else None for handle in handles]

    def chains(self, keys: Sequence[Any], known: Container[Hashable]) -> Iterator[Chain]:
        distinct = [key for key in dict.fromkeys(keys) if key is not None]
        paths = dict(zip(distinct, self._paths(distinct), strict=True))
        return (_upwards(paths.get(key, ()), known) for key in keys)

    def chains_above(self, keys: Sequence[Any], known: Container[Hashable]) -> Iterator[Chain]:
        return (_upwards(path[:-1], known) for path in self._core.collect_path_info(keys))

    def _paths(self, keys: list[int]) -> Sequence[Sequence[Any]]:
        try:
            return self._core.collect_path_info(keys)
        except KeyError:
            # one missing handle fails the whole call: find it
            return [self._path(key) for key in keys]

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

    def resolved(self, handles: Sequence[Any]) -> Sequence[Any]:
        return handles

    def keys(self, handles: Sequence[Any]) -> Sequence[Hashable | None]:
        try:
            nodes = [None if one is None else self._resolve(one) for one in handles]
        except KeyError:
            # one missing handle fails the whole call: find it
            nodes = [None if one is None else self._node(one) for one in handles]
        return [None if node is None else ref(node) for node in nodes]

    def chains(self, keys: Sequence[Any], known: Container[Hashable]) -> Iterator[Chain]:
        return (_walk(key and key(), known) for key in keys)

    def chains_above(self, keys: Sequence[Any], known: Container[Hashable]) -> Iterator[Chain]:
        return (_walk(key().parent, known) for key in keys)

    def _node(self, handle: Any) -> Any:
        try:
            return self._resolve(handle)
        except KeyError:
            FALLBACKS.record("node handle is not in the tree", handle)
            return None


def _upwards(path: Sequence[Any], known: Container[Hashable]) -> Chain:
    links: list[Link] = []
    for node in reversed(path):
        if node.node_id in known:
            return node.node_id, links
        length = node.path_end - node.path_start
        links.append((node.node_id, length, node.full_value_len == length, node.num_children))
    return None, links


def _walk(node: Any, known: Container[Hashable]) -> Chain:
    links: list[Link] = []
    # a node without a parent is the root, or a streaming session's sentinel
    parent = getattr(node, "parent", None)
    while parent is not None:
        key = ref(node)
        if key in known:
            return key, links
        length = len(node.key)
        links.append((key, length, _device_tokens(node) == length, len(node.children)))
        node, parent = parent, parent.parent
    return None, links


class SessionReader:
    """Reads the locked tree node in place of a streaming session's stand-in for it.

    From its second turn on (0.5.23: in the first already) a session's request has a `_VirtualNode`
    as its handle. Its row is the session's from the first turn on: the first `cache_protected_len`
    slots are the tree's, below a node that is locked as long as the session lives.
    """

    def __init__(self, reader: TreeReader, session: Any) -> None:
        self.name = reader.name
        self.keys = reader.keys
        self.chains, self.chains_above = reader.chains, reader.chains_above
        self._session = session

    def resolved(self, handles: Sequence[Any]) -> Sequence[Any]:
        if not (slots := self._session.slots):
            return handles
        locked = {ref(slot.virtual_node): weak(_locked_node(slot)) for slot in slots.values()}
        return [locked.get(handle, handle) for handle in handles]


def weak(handle: Any) -> Any:
    """A tree handle that does not keep the node, and its KV slots, alive."""
    return handle if handle is None or isinstance(handle, int) else ref(handle)


def _locked_node(slot: Any) -> Any:
    """The handle of the node that a session's slot has locked, None if it has none."""
    return slot.last_node if hasattr(slot, "last_node") else getattr(slot.lock, "node", None)


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
    core, why = getattr(tree, "tree_core", None), ""
    # where both ways are open, walking nodes takes a fraction of asking for whole paths
    if hasattr(tree, "resolve_node_handle") and hasattr(tree, "root_node_handle"):
        try:
            root = tree.resolve_node_handle(tree.root_node_handle())
            if all(hasattr(root, name) for name in ("parent", "key", "children")):
                return ParentWalkReader(tree)
        except Exception as error:  # whatever a foreign tree raises, there may be the other way
            why = str(error) or type(error).__name__
    if hasattr(core, "collect_path_info"):
        return PathInfoReader(core)
    if why:
        FALLBACKS.record(f"the nodes of {type(tree).__name__} cannot be read", why)
        return NoneReader(f"{type(core or tree).__name__} cannot be read")
    return NoneReader(f"{type(tree).__name__} has no nodes")


def unwrap(tree_cache: Any) -> Any:
    """The tree inside a `StreamingSession`, which does not forward `resolve_node_handle`."""
    while (inner := getattr(tree_cache, "inner", None)) is not None:
        tree_cache = inner
    return tree_cache


def _device_tokens(node: Any) -> int | None:
    """How many KV slots on the device the node owns for full attention, None if it has none."""
    components = getattr(node, "component_data", None)
    if components is not None:
        # component 0 is FULL in every release that has components
        value = components[0].value
    else:
        # an evicted RadixCache node keeps its value, and an unlocked one is no running request's
        value = node.value if node.lock_ref > 0 else None
    # `len` of a tensor is slow Python
    return None if value is None else value.shape[0]
