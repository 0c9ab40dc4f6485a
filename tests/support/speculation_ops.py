"""SGLang's speculation on a CPU whose `sgl_kernel` is missing: its own Triton kernels, interpreted.

SGLang has each small function of speculation for several devices and chooses when it is imported.
The ones for XPU are in Triton, which needs no device in the interpreter. Only tokens and slots go
through them; what a target model attends to stays SGLang's and codec's.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any
from unittest import mock

import torch

_WORKERS = ("ngram_worker", "standalone_worker_v2")
_OPS = ("sglang.srt.speculative.", "sglang.kernels.ops.speculative.")


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
