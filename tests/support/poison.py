"""Fills memory that the library allocates without initialising it with NaN."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_LIBRARY = "sglang_codec"

# (owner, name) of what returns uninitialised memory
_ALLOCATORS = (
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (torch.Tensor, "new_empty"),
)


def _is_library(module: str) -> bool:
    return module == _LIBRARY or module.startswith(_LIBRARY + ".")


def _poisoning(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def allocate(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = original(*args, **kwargs)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if tensor.is_floating_point() and _is_library(caller):
            tensor.fill_(float("nan"))
        return tensor

    return allocate


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """While active, whatever the library reads before it wrote is NaN and not, by luck, zero."""
    originals = [(owner, name, getattr(owner, name)) for owner, name in _ALLOCATORS]
    for owner, name, original in originals:
        setattr(owner, name, _poisoning(original))
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
