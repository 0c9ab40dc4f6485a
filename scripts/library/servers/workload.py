"""What is served: trees of prompts in token ids that decode together, or prompts that arrive."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from library.servers.clients import Request
from library.trees import Levels, parse_tree

STEPS = 128
SHORT_TOKENS = 8  # context of the rows that measure a step without attention
# ids below this are usually special tokens (begin, end, padding)
_FIRST_ORDINARY_ID = 16


@dataclass(frozen=True, slots=True)
class Workload(Levels):
    """Requests that decode together: the leaves of a tree of prompts.

    Args:
        nodes: nodes on each level; the requests are those of the last.
        tokens: tokens of a node on each level, 0 on the last for requests with equal prompts.
        steps: tokens that each request generates.
    """

    name: str
    nodes: tuple[int, ...]
    tokens: tuple[int, ...]
    steps: int = STEPS

    def __post_init__(self) -> None:
        self.check()
        for above, below in zip(self.nodes, self.nodes[1:], strict=False):
            if below % above:
                raise ValueError(f"{self.name}: {below} nodes below {above} are not a multiple")
        if min(self.nodes) < 1 or min((*self.tokens[:-1], 1)) < 1 or sum(self.tokens) < 1:
            raise ValueError(f"{self.name}: every level needs nodes and every prompt tokens")
        if self.tokens[-1] < 0 or self.steps < 1:
            raise ValueError(f"{self.name}: {self.tokens[-1]} tokens, {self.steps} steps")

    @property
    def prompt_tokens(self) -> int:
        return sum(self.tokens)

    @property
    def shared_tokens(self) -> int:
        """Tokens of a prompt that another request has too."""
        return sum(
            tokens
            for nodes, tokens in zip(self.nodes, self.tokens, strict=True)
            if nodes < self.batch
        )


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Groups of prompts that begin alike, arriving one by one at random times: every arrival and
    every end changes the batch.

    Args:
        rate: requests per second in the mean.
        groups: of `prompts` prompts each.
        system: tokens that the prompts of a group begin with.
        question: tokens of a prompt's own.
        output: tokens that each request generates.
    """

    name: str
    rate: float
    groups: int
    prompts: int
    system: int
    question: int
    output: int

    @property
    def requests(self) -> int:
        return self.groups * self.prompts


def short(batch: int, steps: int = STEPS) -> Workload:
    """As good as no context and nothing shared: what a step costs without attention."""
    return Workload(f"short-{batch}", (batch,), (SHORT_TOKENS,), steps)


STEADY = {
    workload.name: workload
    for workload in (
        Workload("document-qa-32", (1, 32), (100_000, 256)),
        Workload("document-qa-64", (1, 64), (100_000, 256)),
        Workload("few-shot", (1, 64), (8192, 256)),
        Workload("tree-of-thought", (1, 4, 16, 64, 256), (2048, 512, 256, 128, 64)),
        Workload("rollouts", (16, 256), (2048, 0), steps=512),
        Workload("no-sharing", (64,), (2048,)),
        Workload("single", (1,), (8448,)),
    )
}
CHURN = Arrivals("churn", 16, groups=16, prompts=16, system=2048, question=128, output=256)
ARRIVALS = "arrivals"  # of sizes and at rates that the command line names
NAMES = (*STEADY, CHURN.name, ARRIVALS)


def tree_of(text: str) -> Workload:
    """The type of an option that takes a tree in the short notation."""
    try:
        levels = parse_tree(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no workload: choose from {', '.join(NAMES)}, or give a tree"
            " as 1,8_64,16 (nodes per level _ tokens per node)"
        ) from error
    try:
        return Workload(text, *levels)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def with_steps(workload: Workload, steps: dict[str, int]) -> Workload:
    """The workload with the steps given for its name, or else for all (`""`)."""
    return replace(workload, steps=steps.get(workload.name, steps.get("", workload.steps)))


def prompts(workload: Workload, vocabulary: int, seed: int) -> list[list[tuple[int, ...]]]:
    """For each level the token ids from the root to each of its nodes.

    Siblings differ in their first token, so that nothing is shared beyond the tree.

    Raises:
        ValueError: if the vocabulary has fewer ordinary tokens than a node has children.
    """
    ordinary = vocabulary - _FIRST_ORDINARY_ID
    rng = random.Random(f"{seed} {workload.tree}")
    levels: list[list[tuple[int, ...]]] = [[()]]
    for nodes, tokens in zip(workload.nodes, workload.tokens, strict=True):
        above = levels[-1]
        children = nodes // len(above)
        if children > ordinary:
            raise ValueError(f"{workload.name}: {children} siblings need more than {ordinary} ids")
        level = []
        for parent in above:
            first = rng.randrange(ordinary)
            for child in range(children):
                own = [(first + child) % ordinary, *rng.choices(range(ordinary), k=tokens)]
                level.append(parent + tuple(_FIRST_ORDINARY_ID + i for i in own[:tokens]))
        levels.append(level)
    return levels[1:]


def warm_ups(workload: Workload, levels: Sequence[list[tuple[int, ...]]]) -> list[list[Request]]:
    """Batches that bring what is shared into the radix cache, each level after the one above.

    All at once, every request would compute its own copy of the levels above.
    """
    return [
        [Request(f"level {depth} node {i}", ids, 1) for i, ids in enumerate(level)]
        for depth, level in enumerate(levels)
        if len(level) < workload.batch
    ]


def requests_of(workload: Workload, levels: Sequence[list[tuple[int, ...]]]) -> list[Request]:
    """The requests that are measured, in an order that does not follow the tree."""
    leaves = list(enumerate(levels[-1]))
    random.Random(0).shuffle(leaves)
    return [Request(f"{workload.name} {i}", ids, workload.steps) for i, ids in leaves]
