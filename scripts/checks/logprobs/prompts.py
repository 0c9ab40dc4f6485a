"""Prompts that share the beginnings of real texts, in every way a radix tree splits them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from library.servers.clients import Request

LEAST = 16  # tokens of a prompt
LONGEST_BRANCH = 48


def make_prompts(
    documents: Sequence[Sequence[int]], count: int, new_tokens: int, seed: int
) -> list[Request]:
    """As many prompts of each text: it up to some place, and half of them then go elsewhere.

    Each prompt of a text continues all shorter ones of it; the ones that go elsewhere branch off
    with a passage from another place.
    """
    short = [len(document) for document in documents if len(document) < 2 * LEAST]
    if short or not documents:
        raise ValueError(
            f"texts of {short or 'no'} tokens: each needs at least {2 * LEAST}, name longer files"
        )
    rng = random.Random(seed)
    requests = []
    for number in range(count):
        document = documents[number % len(documents)]
        place = rng.randint(LEAST, len(document))
        prompt = tuple(document[:place])
        if number // len(documents) % 2:
            elsewhere = rng.choice(documents)
            start = rng.randrange(len(elsewhere) - LEAST)
            prompt += tuple(elsewhere[start : start + rng.randint(1, LONGEST_BRANCH)])
        requests.append(Request(f"prompt {number}", prompt, new_tokens))
    return requests
