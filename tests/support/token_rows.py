"""Whose tokens are whose: the rows of a batch, token by token, without any planner's code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sglang_codec.planning.paths import RadixPaths


@dataclass(frozen=True, slots=True)
class TokenRows:
    """The tokens of a batch, row after row. Equal names are one token, in one KV slot.

    Args:
        lengths: int64 ``[B]``, tokens of each row.
        names: int64 ``[sum of lengths]``, numbers from 0 on.
        position: int64 ``[names]``, where in its rows each token lies.
    """

    lengths: np.ndarray
    names: np.ndarray
    position: np.ndarray

    @property
    def begin(self) -> np.ndarray:
        """int64 ``[B]``: where each row begins in `names`."""
        return np.cumsum(self.lengths) - self.lengths

    @classmethod
    def of_slots(cls, rows: Sequence[np.ndarray]) -> TokenRows:
        """From the KV slots of each row, in token order; a slot lies at one position only."""
        lengths = np.array([len(row) for row in rows], np.int64)
        slots = np.concatenate([np.zeros(0, np.int64), *rows])
        at = np.arange(len(slots)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        known, names = np.unique(slots, return_inverse=True)
        position = np.zeros(len(known), np.int64)
        position[names] = at
        assert (position[names] == at).all(), "a slot at two positions"
        return cls(lengths, names.astype(np.int64), position)

    @classmethod
    def of_paths(cls, paths: RadixPaths, lengths: np.ndarray, private_tokens: int) -> TokenRows:
        """From radix paths: a row shares the nodes that end before its `private_tokens` last."""
        parents, ends = paths.parent.tolist(), paths.end.tolist()
        prefixes: list[np.ndarray] = [np.zeros(0, np.int64)]  # of each node; the last: of no node
        known = 0
        for parent, end in zip(parents, ends, strict=True):
            above = prefixes[parent + 1]
            own = np.arange(known, known + end - len(above))
            prefixes.append(np.concatenate([above, own]))
            known += len(own)
        rows: list[np.ndarray] = []
        for leaf, length in zip(paths.leaf.tolist(), lengths.tolist(), strict=True):
            while leaf >= 0 and ends[leaf] > length - private_tokens:
                leaf = parents[leaf]
            shared = prefixes[leaf + 1]
            own = np.arange(known, known + length - len(shared))
            rows += shared, own
            known += len(own)
        sizes = np.asarray(lengths, np.int64)
        names = np.concatenate([np.zeros(0, np.int64), *rows])
        position = np.zeros(known, np.int64)
        position[names] = np.arange(len(names)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return cls(sizes, names, position)

    def grown(self, room: np.ndarray) -> TokenRows:
        """The batch after each row got ``room[r]`` new tokens of its own."""
        lengths = self.lengths + room
        row = np.repeat(np.arange(len(lengths)), lengths)
        at = np.arange(len(row)) - (np.cumsum(lengths) - lengths)[row]
        is_new = at >= self.lengths[row]
        names = np.empty(len(row), np.int64)
        names[~is_new] = self.names
        names[is_new] = len(self.position) + np.arange(int(is_new.sum()))
        return TokenRows(lengths, names, np.concatenate([self.position, at[is_new]]))

    def runs(self) -> tuple[int, int]:
        """Runs of tokens with the same two or more readers, and the most runs of any row."""
        readers = np.bincount(self.names, minlength=len(self.position))[self.names]
        begins = np.ones(len(readers), bool)
        begins[1:] = readers[1:] != readers[:-1]
        begins[self.begin[self.lengths > 0]] = True
        row = np.repeat(np.arange(len(self.lengths)), self.lengths)
        shared = np.unique(self.names[begins & (readers > 1)])
        return len(shared), int(np.bincount(row[begins]).max(initial=0))
