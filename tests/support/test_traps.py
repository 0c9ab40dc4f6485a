"""The traps that conftest.py sets for every other test do catch something."""

from __future__ import annotations

import os
import types

import pytest
import torch


def test_library_allocations_are_poisoned() -> None:
    inside = types.ModuleType("sglang_codec.pretended")
    exec("import torch\ndef allocate(*a, **k): return torch.empty(*a, **k)", inside.__dict__)
    assert inside.allocate(3).isnan().all()
    assert not inside.allocate(3, dtype=torch.int32).is_floating_point()


def test_other_allocations_are_left_alone() -> None:
    filled = torch.empty(3).fill_(1.0)
    assert not torch.empty_like(filled).copy_(filled).isnan().any()


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="interpreter only")
def test_interpreted_bf16_dot_is_right() -> None:
    import triton
    import triton.language as tl

    @triton.jit
    def _dot_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
        offsets = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
        product = tl.dot(tl.load(a_ptr + offsets), tl.load(b_ptr + offsets))
        tl.store(out_ptr + offsets, product)

    a, b = torch.randn(2, 16, 16).bfloat16()
    out = torch.zeros(16, 16)
    _dot_kernel[(1,)](a, b, out, N=16)
    torch.testing.assert_close(out, a.float() @ b.float())
