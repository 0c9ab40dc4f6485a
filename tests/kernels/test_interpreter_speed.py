"""Triton's interpreter, hastened: what it replaces, that it puts everything back, what it drops."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch
import triton
import triton.language as tl
from triton.language.core import is_builtin

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="nothing is interpreted here"
)


@triton.jit
def _twice(values):
    return tl.maximum(values, 0) * 2


@triton.jit
def _kernel(out_ptr, in_ptr, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    tl.store(out_ptr + places, _twice(_twice(tl.load(in_ptr + places))))


def test_calls_within_a_kernel_find_the_language_replaced_and_leave_it_as_it_was() -> None:
    from triton.runtime import interpreter

    assert interpreter._patch_builtin.__module__ == "sglang_codec.patches.interpreter_speed"
    before = {name: getattr(tl, name) for name in dir(tl)}
    values, out = torch.arange(-4.0, 4.0), torch.empty(8)
    for _ in range(2):
        out.fill_(float("nan"))
        _kernel[(1,)](out, values, BLOCK=8)
        assert torch.equal(out, values.clamp(min=0) * 4)
        assert all(getattr(tl, name) is value for name, value in before.items())
    assert is_builtin(tl.load)


@triton.jit
def _squares(out_ptr, in_ptr, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    values = tl.load(in_ptr + places)
    tl.store(out_ptr + places, values * values)


def test_integers_are_multiplied_once() -> None:
    """They are so in 64 bits too by default, to find an overflow, of which nobody is told."""
    from triton.runtime.interpreter import interpreter_builder

    values, out = torch.tensor([3, 2**16], dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    counted = []
    with pytest.MonkeyPatch.context() as patched:
        multiply = interpreter_builder.create_mul
        patched.setattr(
            interpreter_builder,
            "create_mul",
            lambda *pair: counted.append(pair) or multiply(*pair),
        )
        _squares[(1,)](out, values, BLOCK=2)
        assert len(counted) == 1
        assert out.tolist() == [9, 0]
        of_triton = dataclasses.replace(interpreter_builder.options, sanitize_overflow=True)
        patched.setattr(interpreter_builder, "options", of_triton)
        _squares[(1,)](out, values, BLOCK=2)
        assert len(counted) == 3
        assert out.tolist() == [9, 0]
