"""Are two backends' greedy tokens the same, and if not, was it a tie?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from library.servers.clients import Completion


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where two completions of the same prompt differ.

    A gap is the distance between the two most likely tokens' logits at that place (equal to that
    of their log-probabilities), in the reference run and in the other; None if logprobs were off.
    """

    name: str
    position: int
    expected: int | None
    got: int | None
    gap_reference: float | None
    gap_other: float | None
    got_is_runner_up: bool | None

    def is_tie(self, tie_gap: float) -> bool:
        """True if the other token is the reference's second choice, at most `tie_gap` behind."""
        if self.gap_reference is None or not self.got_is_runner_up:
            return False
        return self.gap_reference <= tie_gap


@dataclass(frozen=True, slots=True)
class Comparison:
    """All requests of one backend against the reference backend."""

    reference: str
    other: str
    identical: int
    differences: tuple[Difference, ...]
    # prompts only one of the two served, because an earlier level chose other tokens
    unmatched: int

    @property
    def compared(self) -> int:
        return self.identical + len(self.differences)

    def ties(self, tie_gap: float) -> int:
        return sum(difference.is_tie(tie_gap) for difference in self.differences)

    def agrees(self, tie_gap: float) -> bool:
        """True if every difference, and so every unmatched prompt, comes from a tie."""
        return self.ties(tie_gap) == len(self.differences) and (
            not self.unmatched or bool(self.differences)
        )

    def as_json(self, tie_gap: float) -> dict[str, Any]:
        differences = [asdict(d) | {"tie": d.is_tie(tie_gap)} for d in self.differences]
        judged = {"compared": self.compared, "ties": self.ties(tie_gap), "tie_gap": tie_gap}
        return asdict(self) | judged | {"differences": differences}


def compare(
    reference_name: str,
    reference: Sequence[Completion],
    other_name: str,
    other: Sequence[Completion],
) -> Comparison:
    """Match completions by their prompts and find the first difference of each pair."""
    by_prompt = {completion.request.input_ids: completion for completion in reference}
    matched = [
        (by_prompt[completion.request.input_ids], completion)
        for completion in other
        if completion.request.input_ids in by_prompt
    ]
    found = [_first_difference(expected, got) for expected, got in matched]
    differences = tuple(difference for difference in found if difference is not None)
    unmatched = len(reference) + len(other) - 2 * len(matched)
    return Comparison(
        reference_name, other_name, len(matched) - len(differences), differences, unmatched
    )


def _first_difference(expected: Completion, got: Completion) -> Difference | None:
    pairs = zip_longest(expected.output_ids, got.output_ids)
    for position, (token, other) in enumerate(pairs):
        if token != other:
            runner_up = _runner_up(expected, position)
            return Difference(
                name=got.request.name,
                position=position,
                expected=token,
                got=other,
                gap_reference=_gap(expected, position),
                gap_other=_gap(got, position),
                got_is_runner_up=None if runner_up is None else runner_up == other,
            )
    return None


def _gap(completion: Completion, position: int) -> float | None:
    if position >= len(completion.top_logprobs) or len(completion.top_logprobs[position]) < 2:
        return None
    (_, first), (_, second) = completion.top_logprobs[position][:2]
    return first - second


def _runner_up(completion: Completion, position: int) -> int | None:
    """The most likely token that was not chosen."""
    if position >= len(completion.top_logprobs):
        return None
    chosen = completion.output_ids[position]
    others = [token for token, _ in completion.top_logprobs[position] if token != chosen]
    return others[0] if others else None
