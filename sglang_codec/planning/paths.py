"""The radix paths of one decode batch, as a tree reader proves them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class RadixPaths:
    """Which token runs of a batch are known to lie in the same KV slots.

    Path node ``m`` covers tokens ``[end[parent[m]], end[m])`` (from 0 at a root) of every row whose
    path passes through it, and those rows hold the same KV slots there.

    Args:
        parent: int32 ``[M]``, index of the parent node, -1 at a root; parents precede children.
        end: int32 ``[M]``, token position at which the node ends; larger than its parent's.
        leaf: int32 ``[B]``, deepest node of each batch row, -1 where nothing is proven.
    """

    parent: np.ndarray
    end: np.ndarray
    leaf: np.ndarray

    def __post_init__(self) -> None:
        if self.parent.shape != self.end.shape or self.parent.ndim != 1 or self.leaf.ndim != 1:
            raise ValueError(
                f"RadixPaths: parent {self.parent.shape} and end {self.end.shape} must be equal "
                f"one-dimensional shapes, leaf {self.leaf.shape} one-dimensional"
            )

    @property
    def batch(self) -> int:
        return len(self.leaf)

    def equals(self, other: RadixPaths) -> bool:
        """Whether these are equal arrays; equal sharing may look different, never the reverse."""
        return self is other or all(
            one is two or (one.shape == two.shape and one.tobytes() == two.tobytes())
            for one, two in (
                (self.parent, other.parent),
                (self.end, other.end),
                (self.leaf, other.leaf),
            )
        )

    @classmethod
    def private(cls, batch: int) -> RadixPaths:
        """Paths of a batch in which nothing is proven to be shared."""
        empty = np.zeros(0, np.int32)
        return cls(empty, empty, np.full(batch, -1, np.int32))


def deepest_within(
    parent: np.ndarray, end: np.ndarray, leaf: np.ndarray, limits: np.ndarray
) -> np.ndarray:
    """int32 ``[B]``: of each row's path below `leaf`, the deepest node that ends within its limit.

    Args:
        parent, end, leaf: as of `RadixPaths`; leaf -1 stays -1. limits: ``[B]`` tokens.
    """
    leaf = leaf.copy()
    while len(end):
        beyond = (leaf >= 0) & (end[leaf] > limits)
        if not beyond.any():
            break
        leaf[beyond] = parent[leaf[beyond]]
    return leaf
