"""Marks the functions that are compiled. They work uncompiled too, and no import compiles one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import numpy as np

from sglang_codec.planning.border import is_array

Function = TypeVar("Function", bound=Callable[..., Any])
Arguments, Result = ParamSpec("Arguments"), TypeVar("Result")

PARTS: dict[Callable[..., Any], bool] = {}  # what entries call -> whether it allocates


def compiled(function: Function) -> Function:
    """A function that an `Entry` calls."""
    PARTS[function] = True
    return function


def leaf(function: Function) -> Function:
    """A function that makes no array and returns none: it is spared the counting of references."""
    PARTS[function] = False
    return function


class Entry(Generic[Arguments, Result]):
    """A function that Python calls: as it is, until `jit.compile_entries` has compiled it.

    Either way it takes nothing but what is in the signature, or raises TypeError.

    Args:
        signature: of each argument the dtype of a contiguous, writable, one-dimensional array, or
            `int` for a number.
    """

    def __init__(
        self, function: Callable[Arguments, Result], signature: tuple[np.dtype | type, ...]
    ) -> None:
        self.function, self.signature = function, signature
        self.call = function

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if self.call is self.function:
            for array, dtype in zip(args, self.signature, strict=True):
                if dtype is not int and not is_array(array, dtype):
                    raise TypeError(f"{array!r} is no array as compiled code takes it")
        return self.call(*args, **kwargs)
