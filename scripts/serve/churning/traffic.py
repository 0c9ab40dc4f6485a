"""A seeded mix of requests that share prefixes in every way that a radix tree knows.

Token ids only, so that any model serves it. What is drawn depends on the seed and, for requests
that go on from an answer, on the answers that came back.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

FIRST_TOKEN = 3  # below it are the special tokens of the models that the scripts make
ABORTED = 0.12  # of all requests
LONG_OUTPUT, ONE_TOKEN = 0.08, 0.12
REMEMBERED = 48  # prompts to branch from, and finished conversations


@dataclass(frozen=True, slots=True)
class Scale:
    """How large requests are.

    Args:
        vocabulary: token ids. prompt: longest prompt. output: longest answer.
    """

    vocabulary: int
    prompt: int
    output: int


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    Args:
        name: its id; a conversation keeps its own, so a finished request's may come back.
        abort_after: output tokens after which its client goes away, None if it stays.
    """

    name: str
    kind: str
    input_ids: tuple[int, ...]
    max_new_tokens: int
    abort_after: int | None = None


class Traffic:
    """An endless sequence of requests. Give finished ones back: agents go on from them."""

    def __init__(self, seed: int, scale: Scale, groups: int = 4) -> None:
        self._random = random.Random(seed)
        self._scale = scale
        self._count = 0
        lengths = range(scale.prompt // 8, scale.prompt // 2)
        self._groups = [self.tokens(self._random.choice(lengths)) for _ in range(groups)]
        self._tree: deque[tuple[int, ...]] = deque([self._groups[0]], maxlen=REMEMBERED)
        self._conversations: deque[tuple[str, tuple[int, ...]]] = deque(maxlen=REMEMBERED)
        self._bursts = {
            "few-shot": self._few_shot,
            "growing": self._growing,
            "tree": self._branches,
            "twins": self._twins,
            "stranger": self._stranger,
        }

    def __iter__(self) -> Iterator[Ask]:
        while True:
            kind = self._random.choice((*self._bursts, "few-shot", "agent"))
            if kind == "agent" and self._conversations:
                yield self._come_back()
            elif kind != "agent":
                yield from [self._ask(kind, prompt) for prompt in self._bursts[kind]()]

    def finished(self, ask: Ask, output_ids: Sequence[int]) -> None:
        """The answer to `ask`, aborted or not. Its name is free now."""
        self._conversations.append((ask.name, ask.input_ids + tuple(output_ids)))

    def _few_shot(self) -> list[tuple[int, ...]]:
        common = self._random.choice(self._groups)
        return [common + self.tokens(self._up_to(24)) for _ in range(self._up_to(6))]

    def _growing(self) -> list[tuple[int, ...]]:
        """A shared prefix becomes longer, or starts again when it has become too long."""
        place = self._random.randrange(len(self._groups))
        common = self._groups[place] + self.tokens(self._up_to(16))
        if len(common) > self._scale.prompt // 2:
            common = common[: self._up_to(40)]
        self._groups[place] = common
        return [common, common + self.tokens(3)]

    def _branches(self) -> list[tuple[int, ...]]:
        """Children of a node: they split the path of an earlier prompt wherever it may be."""
        parent = self._random.choice(self._tree)
        stem = parent[: self._up_to(len(parent))]
        children = [stem + self.tokens(self._up_to(32) - 1) for _ in range(self._up_to(4))]
        self._tree.extend(children)
        return children

    def _come_back(self) -> Ask:
        """A conversation goes on with nothing or something to add, or from an earlier turn."""
        place = self._random.randrange(len(self._conversations))
        name, history = self._conversations[place]
        del self._conversations[place]
        if self._random.random() < 0.2:
            history = history[: self._up_to(len(history))]
        if len(history) >= self._scale.prompt:
            history = history[: self._scale.prompt // 2]
        return self._ask(
            "agent", history + self.tokens(self._random.choice((0, 0, 1, 8, 24))), name
        )

    def _twins(self) -> list[tuple[int, ...]]:
        """The same prompt several times: prefilled together, each has KV slots of its own at first.

        SGLang holds the second one back if much of it is new.
        """
        prompt = self._random.choice(((), *self._groups)) + self.tokens(self._up_to(24))
        return [prompt] * (1 + self._up_to(3))

    def _stranger(self) -> list[tuple[int, ...]]:
        longest = self._random.choice((2, 20, self._scale.prompt))
        return [self.tokens(self._up_to(longest))]

    def _ask(self, kind: str, prompt: tuple[int, ...], name: str = "") -> Ask:
        self._count += 1
        dice = self._random.random()
        if dice < ONE_TOKEN:
            output = 1
        elif dice < ONE_TOKEN + LONG_OUTPUT:
            output = self._scale.output
        else:
            output = self._up_to(max(self._scale.output // 4, 2))
        leaves = self._random.random() < ABORTED
        after = self._random.randrange(output + 1) if leaves else None
        # no name begins another one: SGLang aborts by the beginning of a name
        name = name or f"{self._count:06}-{kind}"
        return Ask(name, kind, prompt[: self._scale.prompt], output, after)

    def tokens(self, count: int) -> tuple[int, ...]:
        last = self._scale.vocabulary - 1
        return tuple(self._random.randint(FIRST_TOKEN, last) for _ in range(count))

    def _up_to(self, most: int) -> int:
        return self._random.randint(1, max(most, 1))
