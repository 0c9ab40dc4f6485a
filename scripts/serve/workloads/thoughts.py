"""A tree of thoughts in token ids: propose several continuations of a node, keep the best.

Proposals of a node differ by a numbered label that follows the node's text, and are then generated
greedily, so that the whole tree is the same on every run and every backend up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from library.servers.clients import Completion, Request
from library.servers.encoders import Encoder


@dataclass(frozen=True, slots=True)
class Thought:
    """A node of the tree: its path of proposal numbers, its text from the root, its score."""

    path: tuple[int, ...]
    ids: tuple[int, ...]
    logprob: float = 0.0
    tokens: int = 0

    @property
    def name(self) -> str:
        return ".".join(str(number) for number in self.path) or "root"

    @property
    def score(self) -> float:
        """Mean log-probability of all generated tokens from the root to here."""
        return self.logprob / self.tokens if self.tokens else 0.0


def propose(
    frontier: Sequence[Thought], encoder: Encoder, branching: int, max_new_tokens: int
) -> list[tuple[Thought, Request]]:
    """`branching` requests for each node of the frontier, with the child that each may become."""
    proposals = []
    for parent in frontier:
        for number in range(1, branching + 1):
            path = (*parent.path, number)
            label = encoder.encode(f"\nStep {len(path)}, idea {number}:")
            child = Thought(path, parent.ids + tuple(label), parent.logprob, parent.tokens)
            proposals.append((child, Request(f"thought {child.name}", child.ids, max_new_tokens)))
    return proposals


def grow(child: Thought, completion: Completion) -> Thought:
    """The child with its generated tokens and their log-probabilities."""
    if len(completion.logprobs) != len(completion.output_ids):
        raise ValueError(
            f"{len(completion.logprobs)} log-probabilities came back for"
            f" {len(completion.output_ids)} tokens of {completion.request.name!r}: thoughts are"
            " scored by them"
        )
    return Thought(
        child.path,
        child.ids + tuple(completion.output_ids),
        child.logprob + sum(completion.logprobs),
        child.tokens + len(completion.output_ids),
    )


def best(thoughts: Sequence[Thought], count: int) -> list[Thought]:
    """The `count` best-scored thoughts in tree order; equal scores go to the earlier path."""
    ranked = sorted(thoughts, key=lambda thought: (-thought.score, thought.path))
    return sorted(ranked[:count], key=lambda thought: thought.path)


def level_sizes(branching: int, keep: int, depth: int) -> list[int]:
    """How many requests each level decodes together."""
    sizes, frontier = [], 1
    for _ in range(depth):
        sizes.append(frontier * branching)
        frontier = min(keep, sizes[-1])
    return sizes


def draw_tree(thoughts: Sequence[Thought], kept: Sequence[Thought], encoder: Encoder) -> str:
    """The tree as indented lines, `*` before what was kept."""
    kept_paths = {thought.path for thought in kept}
    lines = []
    for thought in sorted(thoughts, key=lambda thought: thought.path):
        mark = "*" if thought.path in kept_paths else " "
        indent = "  " * (len(thought.path) - 1)
        line = f"{mark} {indent}{thought.name}  score {thought.score:.3f}"
        if encoder.is_text:
            text = " ".join(encoder.decode(thought.ids).rsplit("idea", 1)[-1].split())
            line += f"  {text[:60]}"
        lines.append(line)
    return "\n".join(lines)
