"""Trees of prompts by levels: `1,4,8_4096,256,16` is nodes per level _ tokens per node.

The leaves are requests, and the nodes of a level are spread evenly over those of the level above.
"""

from __future__ import annotations


def parse_tree(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Nodes and tokens of each level.

    Raises:
        ValueError: if it is no tree.
    """
    nodes, tokens = text.split("_")
    return tuple(map(int, nodes.split(","))), tuple(map(int, tokens.split(",")))


def join(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))


class Levels:
    """What follows from the levels of a tree."""

    __slots__ = ()
    name: str
    nodes: tuple[int, ...]
    tokens: tuple[int, ...]

    def check(self) -> None:
        """Refuse levels that lack a length."""
        if len(self.nodes) != len(self.tokens):
            raise ValueError(f"{self.name}: {len(self.nodes)} levels, {len(self.tokens)} lengths")

    @property
    def tree(self) -> str:
        """The short notation."""
        return f"{join(self.nodes)}_{join(self.tokens)}"

    @property
    def batch(self) -> int:
        return self.nodes[-1]

    @property
    def unique_tokens(self) -> int:
        """Tokens of all requests, what is shared counted once."""
        return sum(n * t for n, t in zip(self.nodes, self.tokens, strict=True))

    @property
    def total_tokens(self) -> int:
        """Tokens of all requests, counted for each."""
        return self.batch * sum(self.tokens)
