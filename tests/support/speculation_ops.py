"""SGLang's speculation on a CPU whose `sgl_kernel` is missing: its own Triton kernels, interpreted.

SGLang has each small function of speculation for several devices and chooses when it is imported.
The ones for XPU are in Triton, which needs no device in the interpreter. Only tokens and slots go
through them; what a target model attends to stays SGLang's and codec's.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch

_WORKERS = ("ngram_worker", "standalone_worker_v2")
_OPS = ("sglang.srt.speculative.", "sglang.kernels.ops.speculative.")


@contextmanager
def drafting(server_args: Mapping[str, Any]) -> Iterator[None]:
    """A scheduler with these arguments, made in here, can speculate on a CPU if it is to."""
    if "speculative_algorithm" not in server_args:
        yield
        return
    prepare()
    if not server_args.get("disable_overlap_schedule", True):
        overlap_on_a_cpu()
    with NgramStandIn.in_place():
        yield


def overlap_on_a_cpu() -> None:
    """Let SGLang overlap where it speculates on a CPU, whose one stream is in order."""
    from sglang.srt.arg_groups import speculative_hook

    name = "_disable_overlap_schedule_for_cpu"
    if hasattr(speculative_hook, name):
        setattr(speculative_hook, name, lambda _: None)
    torch.Tensor.record_stream = lambda *_: None


def prepare() -> None:
    """Import SGLang's speculative workers and let them run here; before a scheduler is made."""
    inner: Any = ModuleType("sgl_kernel.speculative")
    inner.reconstruct_indices_from_tree_mask = reconstruct_indices_from_tree_mask
    missing = {"sgl_kernel": ModuleType("sgl_kernel"), "sgl_kernel.speculative": inner}
    with mock.patch.dict(sys.modules):
        sys.modules.update(missing)
        for name in _WORKERS:
            importlib.import_module(f"sglang.srt.speculative.{name}")
        imported = {n: m for n, m in sys.modules.items() if n not in missing}
    sys.modules.update(imported)
    for name, module in imported.items():
        if name.startswith(_OPS) and hasattr(module, "_is_xpu"):
            module._is_xpu = True
    # what a GPU's backends read of n-grams: who sees whom among all tokens
    imported["sglang.srt.speculative.ngram_worker"]._is_cpu = False


class NgramStandIn:
    """SGLang's n-gram corpus without its C++: finds what followed a row's last token before.

    Drafts that are too short are filled up as SGLang's are, with zeros beside the first token. What
    it knows outlives the cache: who is served again is drafted well.
    """

    def __init__(self, *, draft_token_num: int, **_: Any) -> None:
        self._n, self._seen = draft_token_num, dict[int, int]()

    @classmethod
    @contextmanager
    def in_place(cls) -> Iterator[None]:
        from sglang.srt.speculative.cpp_ngram import ngram_corpus as corpus

        with mock.patch.object(corpus, "get_ngram_corpus_cls", return_value=cls):
            yield

    def insert(self, batch_tokens: list[list[int]]) -> None:
        for tokens in batch_tokens:
            self._seen |= zip(tokens, tokens[1:], strict=False)

    def match_stateful(
        self, _states: list[int], batch_tokens: list[list[int]], _lengths: list[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        drafts, masks = [], []
        for tokens in batch_tokens:
            draft, mask = [tokens[-1]], np.zeros((self._n, self._n), np.int64)
            while len(draft) < self._n and draft[-1] in self._seen:
                draft.append(self._seen[draft[-1]])
            mask[: len(draft), : len(draft)] = np.tri(len(draft))
            mask[:, 0] = 1
            np.fill_diagonal(mask, 1)
            drafts += draft + [0] * (self._n - len(draft))
            masks.append(mask.ravel())
        return np.array(drafts, np.int64), np.concatenate(masks)

    def synchronize(self) -> None:
        pass

    def reset(self) -> None:
        pass

    def erase_states(self, _states: list[int]) -> None:
        pass


def reconstruct_indices_from_tree_mask(
    mask: torch.Tensor,
    lengths: torch.Tensor,
    positions: torch.Tensor,
    index: torch.Tensor,
    next_token: torch.Tensor,
    next_sibling: torch.Tensor,
    rows: int,
    tokens: int,
) -> None:
    """Links and positions of trees of which `mask` says who is whose ancestor (for 0.5.17)."""
    tree = mask.view(rows, tokens, tokens).bool()
    index.copy_(torch.arange(rows * tokens).view(rows, tokens))
    next_token.fill_(-1)
    next_sibling.fill_(-1)
    for row in range(rows):
        for token in range(tokens - 1, 0, -1):
            parent = int(tree[row, token, :token].nonzero().max())
            next_sibling[row, token] = next_token[row, parent]
            next_token[row, parent] = token
    positions.copy_((lengths[:, None] + tree.sum(2) - 1).flatten())
