"""Let n-gram speculation draft chains only, as it nearly does with a breadth of one, unmasked."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from sglang.srt.plugins.hook_registry import HookType

from sglang_codec.patches.patch import Patch


def chain_drafts(
    found: tuple[np.ndarray, np.ndarray], *args: Any, **kwargs: Any
) -> tuple[np.ndarray, np.ndarray]:
    """AFTER hook: each token, padding too, is drafted behind the one before it.

    Whatever is drafted, the target decides on it: tokens are right, and only the number of those
    accepted could be less. A chain stays as it is; zeros behind it are drafted at its end.
    """
    tokens, mask = found
    n = len(mask) // max(len(tokens), 1)
    return tokens, _chains(len(tokens) // max(n, 1), n, mask.dtype).copy()


@cache
def _chains(rows: int, n: int, dtype: np.dtype) -> np.ndarray:
    return np.tile(np.tri(n, dtype=dtype).ravel(), rows)


CHAIN_DRAFTS = Patch(
    target="sglang.srt.speculative.cpp_ngram.ngram_corpus.NgramCorpus.batch_get",
    hook=HookType.AFTER,
    apply=chain_drafts,
    why="zeros that fill up a draft are drafted beside it, all as first tokens, which makes a tree "
    "of every draft that is shorter than the most",
    upstream="NgramCorpus.batch_get(...) returns the tokens of all rows and, for each row, which "
    "token is behind which, as a matrix; positions and links are made from it",
    remove_when="n-gram speculation with a breadth of 1 drafts chains",
)


def spare_the_masks() -> None:
    """Let a step go without the mask that says who sees whom among all tokens of all rows.

    Chains need none, and SGLang makes it in a loop over the requests, with a copy to the device and
    five launches for each, while the device waits for the step.

    Upstream: the module's `USE_FULL_MASK`, asked at each step; without it the drafts' own mask,
    from which positions and links are made, stands in the step's input too.
    Remove when: SGLang asks a backend whether it reads the mask, as it does for drafts of a model.
    """
    from sglang.srt.speculative import ngram_worker

    ngram_worker.USE_FULL_MASK = False
