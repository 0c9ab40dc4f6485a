"""Runs of KV tokens and who reads them, from the radix paths of a decode batch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sglang_codec.planning.border import checked_forest, path_arrays, refuse_paths
from sglang_codec.planning.entries import build_forest
from sglang_codec.planning.paths import RadixPaths
from sglang_codec.planning.tables import NODE

_ARRAYS = ("order", "lengths", "parent", "start", "length", "first", "last")


@dataclass(frozen=True, slots=True)
class PrefixForest:
    """The sharing structure of one decode batch.

    Nodes ``0 .. num_shared - 1`` are shared runs of KV tokens (at least two readers, parents before
    children, no two consecutive runs with the same readers); node ``num_shared + p`` is the private
    tail of the row at position ``p`` and may be empty. The nodes of a row's path tile its tokens.

    Args:
        order: int32 ``[B]``, batch rows depth first; a *position* indexes this array.
        lengths: int32 ``[B]``, KV tokens of each batch row.
        parent: int32 ``[N]``, parent node, -1 at a root.
        start: int32 ``[N]``, first token of the run, counted from the start of the sequence.
        length: int32 ``[N]``, tokens of the run.
        first, last: int32 ``[N]``, readers are positions ``[first, last)``.
        kv_slots: int32 ``[unique tokens]`` KV slot ids, node after node, or None when the slots are
            known to the device only (SGLang's ``req_to_token``).
        kv_offset: int64 ``[N]``, where each node begins in ``kv_slots``.
        window: newest tokens that a row sees, 0 for all. Then the nodes tile what a row sees, roots
            begin at the first token that a reader sees, and some readers of a node may see only its
            end, or nothing of it.
    """

    order: np.ndarray
    lengths: np.ndarray
    parent: np.ndarray
    start: np.ndarray
    length: np.ndarray
    first: np.ndarray
    last: np.ndarray
    kv_slots: np.ndarray | None = field(default=None, repr=False)
    kv_offset: np.ndarray | None = field(default=None, repr=False)
    window: int = 0

    @property
    def batch(self) -> int:
        return len(self.order)

    @property
    def num_nodes(self) -> int:
        return len(self.parent)

    @property
    def num_shared(self) -> int:
        return self.num_nodes - self.batch

    @property
    def readers(self) -> np.ndarray:
        """int32 ``[N]``: rows that read each node."""
        return self.last - self.first

    @property
    def unique_tokens(self) -> int:
        """KV tokens that are read if every run is read once."""
        return int(self.length.sum())

    @property
    def total_tokens(self) -> int:
        """KV tokens that are read if every row reads its own sequence, whatever its window."""
        return int(self.lengths.sum())

    @property
    def depth(self) -> int:
        """Nodes on the longest path, tails included."""
        depth = np.ones(self.num_nodes, np.int32)
        for node in range(self.num_nodes):
            if self.parent[node] >= 0:
                depth[node] = depth[self.parent[node]] + 1
        return int(depth[self.length > 0].max(initial=0))

    @classmethod
    def from_radix_paths(
        cls, paths: RadixPaths, lengths: np.ndarray, *, private_tokens: int = 0, window: int = 0
    ) -> PrefixForest:
        """Build the forest of a batch whose KV slots only the device knows.

        Args:
            paths: what the radix tree proves about the batch.
            lengths: ``[B]`` KV tokens of each row.
            private_tokens: tokens at each row's end that are private whatever the paths say (the
                token being decoded). A path node that reaches into them is not used for that row.
            window: newest tokens that a row sees, 0 for all.

        Raises:
            ValueError: the paths are no tree, or `lengths` are not those of their rows.
        """
        *arrays, lengths = path_arrays(paths.parent, paths.end, paths.leaf, lengths)
        return cls(**_structure(RadixPaths(*arrays), lengths, private_tokens, window))

    @classmethod
    def from_paths(cls, paths: Sequence[Sequence[tuple[Hashable, Any]]]) -> PrefixForest:
        """Build the forest from named segments.

        Args:
            paths: ``paths[r]`` lists the segments of row ``r`` from root to leaf as ``(segment id,
                KV slot ids)``. Rows that name the same id share that segment; an id must always
                come with the same slots and the same parent. Segments may be empty.

        Raises:
            ValueError: an id with two parents or two sets of slots, or slots that are not a
                one-dimensional array of non-negative integers.
        """
        known: dict[Hashable, _Segment] = {}
        parent: list[int] = []
        end: list[int] = []
        leaf = np.full(len(paths), -1, np.int32)
        lengths = np.zeros(len(paths), np.int32)
        rows: list[list[np.ndarray]] = []
        for row, path in enumerate(paths):
            node, above, position, pieces = -1, None, 0, []
            for name, given in path:
                segment = known.get(name)
                if segment is None:
                    slots = _slot_array(given, f"segment {name!r} of row {row}")
                    if len(slots):
                        parent.append(node)
                        end.append(position + len(slots))
                        node = len(parent) - 1
                    segment = known[name] = _Segment(node, above, given, slots)
                else:
                    segment.check_again(name, above, given, row)
                node, above = segment.node, name
                position += len(segment.slots)
                pieces.append(segment.slots)
            leaf[row] = node
            lengths[row] = position
            rows.append(pieces)
        radix = RadixPaths(np.asarray(parent, np.int32), np.asarray(end, np.int32), leaf)
        bounds = [np.cumsum([0, *map(len, pieces)]) for pieces in rows]

        def slots_of(row: int, start: int, stop: int) -> list[np.ndarray]:
            low = int(np.searchsorted(bounds[row], start, side="right")) - 1
            out = []
            while start < stop:
                piece, base = rows[row][low], int(bounds[row][low])
                out.append(piece[start - base : stop - base])
                start = base + len(piece)
                low += 1
            return out

        return _with_slots(_structure(radix, lengths), slots_of)

    @classmethod
    def from_kv_indices(cls, kv_indptr: Any, kv_indices: Any) -> PrefixForest:
        """Find the sharing of a batch by comparing its KV slots.

        Args:
            kv_indptr: int ``[B + 1]``, row ``r`` owns
                ``kv_indices[kv_indptr[r]:kv_indptr[r + 1]]``.
            kv_indices: int ``[total tokens]`` KV slot ids. Arrays or tensors (copied to the host).

        Rows share the longest common prefix of their slots. Cost: one sort of the rows.
        """
        indices = _slot_array(kv_indices, "kv_indices")
        indptr = np.asarray(_to_numpy(kv_indptr), np.int64)
        if indptr.ndim != 1 or len(indptr) < 1 or indptr[0] != 0 or indptr[-1] != len(indices):
            raise ValueError(
                f"kv_indptr must be one-dimensional, start at 0 and end at len(kv_indices) = "
                f"{len(indices)}; got shape {indptr.shape} and ends "
                f"{indptr[:1].tolist()}..{indptr[-1:].tolist()}"
            )
        if (np.diff(indptr) < 0).any():
            raise ValueError(f"kv_indptr decreases at row {int(np.argmax(np.diff(indptr) < 0))}")
        rows = [indices[a:b] for a, b in zip(indptr[:-1], indptr[1:], strict=True)]
        radix = _radix_paths_of_rows(rows)
        lengths = np.diff(indptr).astype(np.int32)
        return _with_slots(
            _structure(radix, lengths), lambda row, start, stop: [rows[row][start:stop]]
        )

    def through_window(self, window: int, *, query_rows: int = 1) -> PrefixForest:
        """What rows that see their `window` newest tokens read of it; 0 for all.

        Args:
            query_rows: newest tokens of each row that attend. All but the first of these are
                private: a run that reaches into them is not shared with that row.
        """
        if window == self.window and query_rows == 1:
            return self
        if self.window:
            raise ValueError(f"the forest is one of windows of {self.window} tokens, not {window}")
        forest, shared = self.checked(), self.num_shared
        private = forest.length[shared:] >= np.minimum(query_rows - 1, forest.lengths[forest.order])
        if window == self.window and private.all():
            return self
        end, leaf = forest.start + forest.length, np.empty(self.batch, np.int32)
        leaf[forest.order] = forest.parent[shared:]
        paths = RadixPaths(forest.parent[:shared], end[:shared], leaf)
        structure = _structure(paths, forest.lengths, query_rows - 1, window)
        if forest.kv_slots is None:
            return PrefixForest(**structure)
        position = np.argsort(forest.order)

        def slots_of(row: int, start: int, stop: int) -> list[np.ndarray]:
            pieces, node = [], shared + int(position[row])
            while node >= 0 and end[node] > start:
                begin = max(start, int(forest.start[node]))
                at = int(forest.kv_offset[node]) - int(forest.start[node])
                pieces.append(forest.kv_slots[at + begin : at + min(stop, int(end[node]))])
                node = int(forest.parent[node])
            return pieces[::-1]

        return _with_slots(structure, slots_of)

    def checked(self) -> PrefixForest:
        """The same forest in contiguous int32 arrays, each index proven to be one.

        Raises:
            ValueError: the arrays break what this class promises; names the first place.
        """
        arrays = checked_forest(*(getattr(self, name) for name in _ARRAYS), self.window)
        forest = replace(self, **dict(zip(_ARRAYS, arrays, strict=True)))
        if self.kv_slots is None:
            return forest
        slots = _slot_array(self.kv_slots, "kv_slots")
        offset = np.asarray(self.kv_offset)
        if offset.shape != (self.num_nodes,) or offset.dtype.kind not in "iu":
            raise ValueError(
                f"kv_offset has shape {offset.shape} and dtype {offset.dtype}; it must be an "
                f"integer for each of {self.num_nodes} nodes"
            )
        if not ((offset >= 0) & (offset + forest.length <= len(slots))).all():
            raise ValueError(f"kv_offset: a node does not lie within the {len(slots)} KV slots")
        return replace(forest, kv_slots=slots)

    def to_dict(self) -> dict[str, Any]:
        """The structure (not the slots) as JSON-ready lists; `from_dict` is the inverse."""
        arrays = {name: getattr(self, name).tolist() for name in _ARRAYS}
        return arrays | ({"window": self.window} if self.window else {})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PrefixForest:
        arrays = {name: np.asarray(data[name], np.int32) for name in data if name != "window"}
        return cls(**arrays, window=data.get("window", 0))


@dataclass(frozen=True, slots=True)
class _Segment:
    """A named segment as its first row gave it."""

    node: int
    above: Hashable
    given: Any
    slots: np.ndarray

    def check_again(self, name: Hashable, above: Hashable, given: Any, row: int) -> None:
        if above != self.above:
            raise ValueError(
                f"segment {name!r} follows {above!r} in row {row} but {self.above!r} in an earlier "
                "row; a segment id names one place in the tree, so use another id"
            )
        if given is self.given:
            return
        if not np.array_equal(_slot_array(given, f"segment {name!r} of row {row}"), self.slots):
            raise ValueError(
                f"segment {name!r} has other KV slots in row {row} than in an earlier row; rows "
                "that share a segment id must share its slots"
            )


def _to_numpy(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # a torch tensor, without importing torch
        values = values.detach().cpu().numpy()
    return np.asarray(values)


def _slot_array(values: Any, what: str) -> np.ndarray:
    slots = _to_numpy(values)
    if slots.size == 0:
        return np.zeros(0, np.int32)
    if slots.ndim != 1 or slots.dtype.kind not in "iu":
        raise ValueError(
            f"{what}: KV slots must be a one-dimensional integer array, got shape {slots.shape} "
            f"and dtype {slots.dtype}"
        )
    low, high = int(slots.min()), int(slots.max())
    if low < 0 or high > np.iinfo(np.int32).max:
        raise ValueError(f"{what}: KV slots must lie in [0, 2^31), got {low}..{high}")
    return slots.astype(np.int32, copy=False)


def _structure(
    paths: RadixPaths, lengths: np.ndarray, private_tokens: int = 0, window: int = 0
) -> dict[str, Any]:
    """Everything but the slots of a `PrefixForest`."""
    arrays = paths.parent, paths.end, paths.leaf, lengths
    found, order, nodes = build_forest(*arrays, private_tokens, window)
    if not found:
        refuse_paths(*arrays)
    columns = np.ascontiguousarray(nodes.reshape(-1, len(NODE.names)).T, np.int32)
    named = dict(zip(NODE.names, columns, strict=True))
    return {"order": order.astype(np.int32), "lengths": lengths, **named, "window": window}


def _with_slots(structure: dict[str, Any], slots_of: Any) -> PrefixForest:
    pieces: list[np.ndarray] = [np.zeros(0, np.int32)]
    offset = np.zeros(len(structure["parent"]) + 1, np.int64)
    np.cumsum(structure["length"], out=offset[1:])
    rows = structure["order"][structure["first"]] if len(structure["order"]) else []
    starts, lengths = structure["start"].tolist(), structure["length"].tolist()
    for row, start, length in zip(rows, starts, lengths, strict=True):
        if length:
            pieces.extend(slots_of(int(row), start, start + length))
    return PrefixForest(**structure, kv_slots=np.concatenate(pieces), kv_offset=offset[:-1])


def _radix_paths_of_rows(rows: list[np.ndarray]) -> RadixPaths:
    """Radix paths from equal slots: sort the rows, compare neighbours, nest the common prefixes."""
    batch = len(rows)
    # big-endian bytes sort like the slot sequences themselves
    keys = [row.astype(">u4").tobytes() for row in rows]
    by_key = sorted(range(batch), key=keys.__getitem__)
    common = np.zeros(batch, np.int64)  # with the row sorted just before
    for i in range(1, batch):
        a, b = rows[by_key[i - 1]], rows[by_key[i]]
        n = min(len(a), len(b))
        differs = a[:n] != b[:n]
        common[i] = int(np.argmax(differs)) if differs.any() else n
    parent: list[int] = []
    end: list[int] = []
    leaf = np.full(batch, -1, np.int32)
    work = [(0, batch, -1, 0)]  # sorted rows [low, high), the node above them, where it ends
    while work:
        low, high, above, above_end = work.pop()
        if high - low < 2:
            leaf[[by_key[i] for i in range(low, high)]] = above
            continue
        inner = common[low + 1 : high]
        shortest = int(inner.min())
        node = above
        if shortest > above_end:
            node = len(parent)
            parent.append(above)
            end.append(shortest)
        cuts = [low, *(low + 1 + np.flatnonzero(inner == shortest)).tolist(), high]
        work.extend((a, b, node, shortest) for a, b in zip(cuts[:-1], cuts[1:], strict=True))
    return RadixPaths(np.asarray(parent, np.int32), np.asarray(end, np.int32), leaf)
