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
from itertools import compress, count, islice
from operator import is_not
from typing import Any, NamedTuple
from weakref import ref

import numpy as np

from sglang_codec.patches.tree_readers import Chain, Link, TreeReader
from sglang_codec.planning.paths import RadixPaths

# of all rows: requests, tree handles, tree-owned tokens, `req_to_token` rows, retractions. By
# column: what is the same object in the same column is compared without being looked at, and a
# server has other things in its caches than what a batch holds. Requests and tree nodes are weak
# references.
RowStates = tuple[tuple[Any, ...], ...]

_UNPLACED = -2


class _Node:
    """A tree node at which paths end or may part.

    `count`: rows that end here, and nodes in `below`, the next such ones. It is shared if there are
    two: then two rows pass, and not the same ones as the next node below.
    `place`: its index in the paths that were read last, or that of the next one above if this one
    is not in them. `seen`: the read that last looked at what lies between it and `above`.
    """

    __slots__ = ("above", "below", "count", "end", "key", "place", "seen")

    def __init__(self, key: Hashable, end: int, above: _Node | None, seen: int) -> None:
        self.key, self.end, self.above, self.seen = key, end, above, seen
        self.count, self.place = 0, -1
        # most nodes are the ends of a row of its own, and never have one
        self.below: dict[_Node, None] | None = None
        if above is not None:
            self.place = above.place
            self.hang_below(above)

    def hang_below(self, above: _Node) -> None:
        self.above = above
        above.count += 1
        if above.below is None:
            above.below = {}
        above.below[self] = None

    def take_off(self) -> None:
        self.above.count -= 1
        del self.above.below[self]


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
        # of the rows that were read last; `_unsure` are those that are read each time
        self._requests: tuple[Any, ...] = ()
        self._columns: Sequence[tuple[Any, ...]] = ()
        self._ends: list[_Node] = []
        self._unsure: set[Any] = set()
        self._paths = RadixPaths.private(0)
        self._is_laid_out = True

    def knows_any(self, requests: Sequence[ref[Any]]) -> bool:
        """Whether any of these was in the batch that was read last."""
        return not set(map(id, self._requests)).isdisjoint(map(id, requests))

    def read(
        self, requests: tuple[ref[Any], ...], columns: Sequence[tuple[Any, ...]]
    ) -> RadixPaths:
        """The paths of these requests' rows: proven nodes that two of them at least pass.

        Those of the last read, the very object, if they are the same.

        Args:
            columns: the others of `RowStates`.
        """
        try:
            runs = _runs_kept(requests, self._requests)
            rows = self._update(runs, requests, columns)
        except BaseException:
            self._forget_all()
            raise
        self._requests, self._columns = requests, columns
        paths = self._with_rows(runs, rows) if self._is_laid_out else self._lay_out()
        if not paths.equals(self._paths):
            self._paths = paths
        return self._paths

    def _update(
        self,
        runs: Sequence[_Run],
        requests: tuple[ref[Any], ...],
        columns: Sequence[tuple[Any, ...]],
    ) -> Sequence[int]:
        """Forget who has left, then read who has joined; the rows that were read."""
        self._reads += 1
        ends: list[_Node] = []
        left: list[_Node] = []
        changed: set[int] = set()
        joined: list[int] = []
        stop = 0
        for first, run in (*runs, _Run(len(requests), slice(len(self._ends), None))):
            left += self._ends[stop : run.start]
            joined += range(len(ends), first)
            ends += [self._root] * (first - len(ends))
            ends += self._ends[run]
            stop = run.stop
            for now, was in zip(columns, self._columns, strict=False):  # none before the first read
                rows = differing(now[first : len(ends)], was[run])
                changed.update([first + row for row in rows])
        if self._unsure:
            again = {row for row, one in enumerate(requests) if one in self._unsure}
            changed |= again.difference(joined)
            self._unsure = set()
        for end in (*left, *(ends[row] for row in changed)):
            self._leave(end)
        rows = [*sorted(changed), *joined]
        if rows:
            handles, owned, *_ = columns
            keys = self._reader.keys([_alive(handles[row]) for row in rows])
            self._ends_now = set(keys)
            chains = self._reader.chains(keys, self._nodes)
            for row, key, links in zip(rows, keys, chains, strict=True):
                ends[row] = self._join(requests[row], owned[row], key, links)
        self._ends = ends
        return rows

    def _join(self, request: ref[Any], owned: int, key: Hashable, chain: Chain) -> _Node:
        known, links = chain
        node = self._root if known is None else self._nodes[known]
        end, is_whole = node.end, True
        for _, length, on_device, _ in links:
            end += length
            is_whole &= on_device
        if not is_whole or end > owned:
            # what is off the device, or not the tree's, may be proven later: read it each time
            self._unsure.add(request)
            node = self._insert_proven(key, owned)
        elif links:
            node = self._insert(node, links, looked_at=True)
        node.count += 1
        if node.count == 2:
            self._is_laid_out = False
        return node

    def _insert_proven(self, key: Hashable, owned_by_tree: int) -> _Node:
        """The last node on the way to `key` that lies on the device and is the tree's."""
        ((_, links),) = self._reader.chains([key], ())
        above, end, proven = self._root, 0, []
        for link in reversed(links):
            end += link[1]
            if not link[2] or end > owned_by_tree:
                break
            proven.append(link)
            if link[0] in self._nodes:
                above, proven = self._nodes[link[0]], []
        return self._insert(above, proven[::-1], looked_at=False) if proven else above

    def _insert(self, above: _Node, links: Sequence[Link], *, looked_at: bool) -> _Node:
        """The node at the end of `links`, which follow `above`.

        `looked_at`: nodes that were read just now already show that a path ends here.
        """
        node, end, parts, last = above, above.end, False, links[0]
        for link in reversed(links):
            key, length, _, children = link
            end += length
            if link is last or children > 1 or key in self._ends_now:
                node = self._nodes[key] = _Node(key, end, node, self._reads)
                parts |= children > (link is not last)
        if above.count == 2:
            self._is_laid_out = False
        if parts:
            old = [one for one in above.below if one.seen != self._reads or not looked_at]
            self._look_again(above, old)
        return node

    def _look_again(self, above: _Node, below: Sequence[_Node]) -> None:
        """Insert the nodes that splits have put between `above` and these nodes below it."""
        if not below:
            return
        chains = self._reader.chains_above([node.key for node in below], self._nodes)
        for node, (known, links) in zip(below, chains, strict=True):
            node.seen = self._reads
            last = self._root if known is None else self._nodes[known]
            end = last.end
            for key, length, _, children in reversed(links):
                end += length
                if children > 1 or key in self._ends_now:
                    last = self._nodes[key] = _Node(key, end, last, self._reads)
            if last is not node.above:
                node.take_off()
                node.hang_below(last)
                self._is_laid_out = False

    def _leave(self, node: _Node) -> None:
        node.count -= 1
        while not node.count and node is not self._root:
            node.take_off()
            del self._nodes[node.key]
            node = node.above
        if node.count == 1:
            self._is_laid_out = False

    def _with_rows(self, runs: Sequence[_Run], rows: Sequence[int]) -> RadixPaths:
        """The paths as they are laid out, of the rows kept in `runs` and those that were read."""
        leaf = np.empty(len(self._ends), np.int32)
        for first, run in runs:
            leaf[first : first + run.stop - run.start] = self._paths.leaf[run]
        for row in rows:
            leaf[row] = self._ends[row].place
        return RadixPaths(self._paths.parent, self._paths.end, leaf)

    def _lay_out(self) -> RadixPaths:
        """Number the shared nodes as the rows come by them, so that equal paths look the same."""
        for node in self._nodes.values():
            node.place = _UNPLACED
        parents: list[int] = []
        reaches: list[int] = []
        for node in self._ends:
            path = []
            while node.place == _UNPLACED:
                path.append(node)
                node = node.above
            place = node.place
            for below in reversed(path):
                if below.count > 1:
                    parents.append(place)
                    reaches.append(below.end)
                    place = len(reaches) - 1
                below.place = place
        self._is_laid_out = True
        leaves = [node.place for node in self._ends]
        return RadixPaths(*(np.array(one, np.int32) for one in (parents, reaches, leaves)))


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
        kept = self._kept[0]
        if len(self._kept) > 1:
            kept = next((one for one in self._kept if one.knows_any(requests)), self._kept[-1])
            self._kept.remove(kept)
            self._kept.insert(0, kept)
        return kept.read(requests, (tuple(self.reader.resolved(handles)), *others))


class _Run(NamedTuple):
    """Rows `was` of the batch before, which are those from `first` on now."""

    first: int
    was: slice


def _runs_kept(now: tuple[Any, ...], before: tuple[Any, ...]) -> list[_Run]:
    """Runs of the rows before that are rows now, in their order; a loop for each, not for each row.

    Rows leave, the others close up, and new ones follow, or go ahead of all after a mixed batch:
    where it is otherwise, rows are taken for new ones.
    """
    if now == before:
        return [_Run(0, slice(0, len(now)))]
    runs, at, start = [], 0, 0
    if now and now[0] not in before:
        known = set(map(id, before))
        at = next((row for row, one in enumerate(now) if id(one) in known), len(now))
    while at < len(now):
        try:
            start = before.index(now[at], start)
        except ValueError:
            break
        same = min(len(now) - at, len(before) - start)
        if now[at : at + same] != before[start : start + same]:
            pairs = map(is_not, islice(now, at, None), islice(before, start, None))
            same = next(compress(count(), pairs))
        runs.append(_Run(at, slice(start, start + same)))
        at, start = at + same, start + same
    return runs


def differing(now: tuple[Any, ...], was: tuple[Any, ...]) -> list[int]:
    """Where these differ, which are as long; what is the same object is not looked at."""
    if now == was:
        return []
    return [at for at in compress(count(), map(is_not, now, was)) if now[at] != was[at]]


def _alive(handle: Any) -> Any:
    return handle() if isinstance(handle, ref) else handle
