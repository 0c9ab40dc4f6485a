"""Arithmetic word problems with worked answers, made from a seed: nothing is downloaded."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

_PEOPLE = ("Ada", "Ben", "Chloe", "Dev", "Elif", "Femi", "Grace", "Hugo", "Ines", "Jun")
_THINGS = ("apples", "books", "candles", "marbles", "pencils", "seeds", "shells", "stamps")
_PLACES = ("market", "school", "library", "harbour", "garden", "station")

INSTRUCTION = "Solve each problem. Think step by step and finish with the answer as a number.\n\n"


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, the steps to its answer, and the answer."""

    question: str
    steps: str
    answer: int

    def worked(self) -> str:
        """The problem as an example: question, steps and answer."""
        return f"{self.asked()} {self.steps} The answer is {self.answer}.\n\n"

    def asked(self) -> str:
        """The problem as a prompt, ending where the model has to go on."""
        return f"Question: {self.question}\nAnswer:"


def _buying(rng: random.Random) -> Problem:
    person, thing, place = rng.choice(_PEOPLE), rng.choice(_THINGS), rng.choice(_PLACES)
    start, bags, each = rng.randint(3, 40), rng.randint(2, 9), rng.randint(2, 12)
    bought = bags * each
    return Problem(
        f"{person} has {start} {thing} and buys {bags} bags with {each} {thing} each at the"
        f" {place}. How many {thing} does {person} have now?",
        f"{bags} bags of {each} are {bought} {thing}. {start} + {bought} = {start + bought}.",
        start + bought,
    )


def _sharing(rng: random.Random) -> Problem:
    person, thing = rng.choice(_PEOPLE), rng.choice(_THINGS)
    friends, each, left = rng.randint(2, 9), rng.randint(2, 12), rng.randint(1, 9)
    start = friends * each + left
    return Problem(
        f"{person} has {start} {thing}, keeps {left} and gives the rest to {friends} friends in"
        f" equal parts. How many {thing} does each friend get?",
        f"{start} - {left} = {start - left} {thing} are given away. {start - left} / {friends}"
        f" = {each}.",
        each,
    )


def _walking(rng: random.Random) -> Problem:
    person, place = rng.choice(_PEOPLE), rng.choice(_PLACES)
    km, days, extra = rng.randint(2, 9), rng.randint(3, 12), rng.randint(1, 9)
    both = 2 * km
    return Problem(
        f"The {place} is {km} km from {person}'s home. {person} goes there and back on {days}"
        f" days, and walks {extra} km more on Sunday. How many km is that?",
        f"There and back is {both} km. {days} x {both} = {days * both}. {days * both} + {extra}"
        f" = {days * both + extra}.",
        days * both + extra,
    )


_KINDS = (_buying, _sharing, _walking)


def make_problems(count: int, seed: int) -> list[Problem]:
    """`count` different problems; the same seed gives the same ones."""
    rng = random.Random(seed)
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        problem = rng.choice(_KINDS)(rng)
        problems.setdefault(problem.question, problem)
    return list(problems.values())


def few_shot_texts(shots: int, questions: int, seed: int) -> tuple[str, list[Problem]]:
    """The common prompt of `shots` worked examples, and the problems asked after it."""
    problems = make_problems(shots + questions, seed)
    common = INSTRUCTION + "".join(problem.worked() for problem in problems[:shots])
    return common, problems[shots:]


def read_answer(text: str) -> int | None:
    """The number that a completion gives as its answer, None if it gives none."""
    answer = text.split("Question:")[0]
    found = re.findall(r"answer is\s+(-?\d+)", answer)
    return int(found[0]) if found else None
