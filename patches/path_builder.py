"""Collects the path nodes of a batch, each distinct tree node once, into `RadixPaths`."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from sglang_codec.planning.paths import RadixPaths, deepest_within


class Proof(NamedTuple):
    """What is known below a tree node: the deepest proven path node, and if more may follow."""

    index: int
    open: bool


ROOT = Proof(-1, True)


class PathBuilder:
    """Path nodes in creation order, so parents precede children."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.end: list[int] = []
        self.proofs: dict[Hashable, Proof] = {}

    def length(self, proof: Proof) -> int:
        return self.end[proof.index] if proof.index >= 0 else 0

    def add(self, key: Hashable, above: Proof, length: int, *, on_device: bool) -> Proof:
        """Register the node `key` below `above`; nothing is proven below a node off the device."""
        if above.open and on_device and length > 0:
            self.parent.append(above.index)
            self.end.append(self.length(above) + length)
            proof = Proof(len(self.end) - 1, True)
        else:
            proof = Proof(above.index, above.open and length == 0)
        self.proofs[key] = proof
        return proof

    def finish(self, leaves: Sequence[int], owned_by_tree: Sequence[int]) -> RadixPaths:
        """`owned_by_tree[r]`: tokens of row r whose KV slots are the tree's; deeper is private."""
        parent, end = np.array(self.parent, np.int32), np.array(self.end, np.int32)
        leaf = deepest_within(parent, end, np.array(leaves, np.int32), np.array(owned_by_tree))
        return RadixPaths(parent, end, leaf)
