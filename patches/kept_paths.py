"""The paths of the rows that decode, kept between two reads: who joins or leaves costs its own.

Why a kept path stays true: as long as a row's state is the same, its request holds a lock on its
tree node and all above it. SGLang neither evicts nor moves what is locked, and splitting a node
changes neither the tokens nor the KV slots of a path. A split can only put a node on kept paths
that they do not show. It matters once another row parts from them there, and is found when that
row joins. Rows that are not in a batch are forgotten before new ones are looked at; when a tree
raises, all are.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import compress
from operator import ne
from typing import Any
from weakref import ref

import numpy as np

from sglang_codec.patches.tree_readers import Chain, Link, TreeReader
from sglang_codec.planning.paths import RadixPaths

# of all rows: requests, tree handles, tree-owned tokens, `req_to_token` rows, retractions. By
# column, because comparing five long tuples takes half the time of comparing many short ones.
RowStates = tuple[tuple[Any, ...], ...]
# one row's, without the request; requests and tree nodes are held by weak references
RowState = tuple[Any, ...]

_UNPLACED = -2


class _Node:
    """A tree node at which paths end or may part: `rows` end here, `below` are the next such nodes.

    `place`: its index in the paths that were read last, or that of the next one above if this one
    is not in them. `seen`: the read that last looked at what lies between it and `above`.
    """

    __slots__ = ("above", "below", "end", "key", "place", "rows", "seen")

    def __init__(self, key: Hashable, end: int, above: _Node | None, seen: int) -> None:
        self.key, self.end, self.above, self.seen = key, end, above, seen
        self.below: dict[_Node, None] = {}
        self.rows = 0
        self.place = -1
        if above is not None:
            self.place = above.place
            above.below[self] = None

    @property
    def is_shared(self) -> bool:
        """Two rows pass, and not the same ones as the next node below."""
        return self.rows + len(self.below) > 1

    def move_below(self, above: _Node) -> None:
        del self.above.below[self]
        self.above = above
        above.below[self] = None


class KeptPaths:
    """Reads one batch after another; on the scheduler thread, inside `run_batch`."""

    def __init__(self, reader: TreeReader) -> None:
        self._reader = reader
        self._forget_all()

    def _forget_all(self) -> None:
        self._reads = 0
        self._ends_now: set[Hashable | None] = set()  # where the rows end that are being read
        self._root = _Node(None, 0, None, 0)
        self._nodes: dict[Hashable, _Node] = {}
        self._states: dict[ref[Any], RowState] = {}
        self._ends: dict[ref[Any], _Node] = {}
        self._parent = self._end = np.zeros(0, np.int32)
        self._is_laid_out = True

    def knows_any(self, requests: Sequence[ref[Any]]) -> bool:
        """Whether any of these was in the batch that was read last."""
        return any(map(self._ends.__contains__, requests))

    def read(self, requests: Sequence[ref[Any]], states: Sequence[RowState]) -> RadixPaths:
        """The paths of these requests' rows: proven nodes that two of them at least pass."""
        try:
            ends = self._update(requests, states)
        except BaseException:
            self._forget_all()
            raise
        if not self._is_laid_out:
            self._lay_out(ends)
        leaf = np.array([end.place for end in ends], np.int32)
        return RadixPaths(self._parent, self._end, leaf)

    def _update(self, requests: Sequence[ref[Any]], states: Sequence[RowState]) -> Sequence[_Node]:
        """Forget who has left, then read who has joined; where each row's path ends now."""
        self._reads += 1
        before = map(self._states.get, requests)
        joined = list(compress(range(len(states)), map(ne, states, before)))
        left = [requests[row] for row in joined if requests[row] in self._ends]
        if len(self._ends) - len(left) > len(states) - len(joined):
            left.extend(self._ends.keys() - requests)
        for request in left:
            del self._states[request]
            self._leave(self._ends.pop(request))
        if joined:
            keys = self._reader.keys([_alive(states[row][0]) for row in joined])
            self._ends_now = set(keys)
            chains = self._reader.chains(keys, self._nodes)
            for row, key, chain in zip(joined, keys, chains, strict=True):
                self._join(requests[row], states[row], key, chain)
        return list(map(self._ends.__getitem__, requests))

    def _join(self, request: ref[Any], state: RowState, key: Hashable, chain: Chain) -> None:
        owned_by_tree = state[1]
        above = self._known(chain.above)
        links = _proven(chain.links, above.end, owned_by_tree)
        is_whole = len(links) == len(chain.links) and above.end <= owned_by_tree
        if not is_whole:
            # what is off the device, or not the tree's, may be proven later: read it each time
            state = ()
            (chain,) = self._reader.chains([key], ())
            links = _proven(chain.links, 0, owned_by_tree)
            known = [place for place, link in enumerate(links) if link.key in self._nodes]
            above = self._nodes[links[known[-1]].key] if known else self._root
            links = links[known[-1] + 1 :] if known else links
        node = self._insert(above, links, looked_at=is_whole)
        was_shared = node.is_shared
        node.rows += 1
        self._note(node, was_shared)
        self._states[request], self._ends[request] = state, node

    def _insert(self, above: _Node, links: Sequence[Link], *, looked_at: bool) -> _Node:
        """The node at the end of `links`, which follow `above`.

        `looked_at`: nodes that were read just now already show that a path ends here.
        """
        was_shared = above.is_shared
        node, end, parts = above, above.end, False
        for link in links:
            end += link.length
            is_last = link is links[-1]
            if is_last or self._may_part_at(link):
                node = self._nodes[link.key] = _Node(link.key, end, node, self._reads)
                parts |= link.children > (not is_last)
        self._note(above, was_shared)
        if parts:
            old = [one for one in above.below if one.seen != self._reads or not looked_at]
            self._look_again(above, old)
        return node

    def _may_part_at(self, link: Link) -> bool:
        """Whether another path may leave this one, or end, at `link`."""
        return link.children > 1 or link.key in self._ends_now

    def _known(self, key: Hashable | None) -> _Node:
        return self._root if key is None else self._nodes[key]

    def _look_again(self, above: _Node, below: Sequence[_Node]) -> None:
        """Insert the nodes that splits have put between `above` and these nodes below it."""
        if not below:
            return
        chains = self._reader.chains_above([node.key for node in below], self._nodes)
        for node, chain in zip(below, chains, strict=True):
            node.seen = self._reads
            last = self._known(chain.above)
            end = last.end
            for link in chain.links:
                end += link.length
                if self._may_part_at(link):
                    last = self._nodes[link.key] = _Node(link.key, end, last, self._reads)
            if last is not node.above:
                node.move_below(last)
                self._is_laid_out = False

    def _leave(self, node: _Node) -> None:
        was_shared = node.is_shared
        node.rows -= 1
        self._note(node, was_shared)
        while node is not self._root and not node.rows and not node.below:
            above = node.above
            was_shared = above.is_shared
            del above.below[node], self._nodes[node.key]
            self._note(above, was_shared)
            node = above

    def _note(self, node: _Node, was_shared: bool) -> None:
        if node is not self._root and node.is_shared != was_shared:
            self._is_laid_out = False

    def _lay_out(self, ends: Sequence[_Node]) -> None:
        """Number the shared nodes as the rows come by them, so that equal paths look the same."""
        for node in self._nodes.values():
            node.place = _UNPLACED
        parent: list[int] = []
        end: list[int] = []
        for node in ends:
            path = []
            while node.place == _UNPLACED:
                path.append(node)
                node = node.above
            for below in reversed(path):
                below.place = node.place
                if below.is_shared:
                    parent.append(node.place)
                    end.append(below.end)
                    below.place = len(end) - 1
                node = below
        self._parent, self._end = np.array(parent, np.int32), np.array(end, np.int32)
        self._is_laid_out = True


class KeptBatches:
    """The kept paths of the batches that take turns, one for each pipeline micro-batch.

    Args:
        most_kept: batches that take turns.
    """

    def __init__(self, reader: TreeReader, most_kept: int = 1) -> None:
        self.reader = reader
        self._kept = [KeptPaths(reader) for _ in range(most_kept)]

    def read(self, states: RowStates) -> RadixPaths:
        """The paths of the rows with these states."""
        requests, handles, *others = states
        rows = list(zip(self.reader.resolved(handles), *others, strict=True))
        kept = self._kept[0]
        if len(self._kept) > 1:
            kept = next((one for one in self._kept if one.knows_any(requests)), self._kept[-1])
            self._kept.remove(kept)
            self._kept.insert(0, kept)
        return kept.read(requests, rows)


def _proven(links: Sequence[Link], start: int, owned_by_tree: int) -> Sequence[Link]:
    """The first links, from token `start` on, that lie on the device and are the tree's."""
    for place, link in enumerate(links):
        start += link.length
        if not link.on_device or start > owned_by_tree:
            return links[:place]
    return links


def _alive(handle: Any) -> Any:
    return handle() if isinstance(handle, ref) else handle
