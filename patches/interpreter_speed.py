"""What Triton's interpreter does at every call or operation, though it has no effect."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any


def hasten_interpreter() -> None:
    """Outside of kernels, before the first one is interpreted; idempotent.

    Why: the language's builtins are replaced while a kernel is interpreted, and looked for again in
    every call of a function by it, by `inspect.getmembers`, though nothing is left to replace: 18%
    of the time of a test that decodes on a CPU. And all 32-bit integers that are added or
    multiplied are so again in 64 bits, to assert that 32 were enough, but assertions are dropped
    unless kernels are debugged: 31% of another's.
    Upstream: `triton.runtime.interpreter`: `_patch_builtin(pkg, builder, scope)`, which replaces
    nothing until a kernel ends, and `InterpreterOptions`, Triton 3.6 and 3.7.
    Remove when: a call within a kernel replaces nothing, and what is not asserted is not computed.
    """
    from triton.runtime import interpreter

    # another Triton is interpreted as slowly as it is
    if hasattr(interpreter, "_patch_builtin") and hasattr(interpreter, "_patch_attr"):
        interpreter._patch_builtin = _replace_builtins
    options = interpreter.interpreter_builder.options
    if getattr(options, "sanitize_overflow", False) and not getattr(options, "debug", True):
        options = dataclasses.replace(options, sanitize_overflow=False)
        interpreter.interpreter_builder.options = options


def _replace_builtins(pkg: Any, builder: Any, scope: Any) -> None:
    from triton.language.core import is_builtin
    from triton.runtime.interpreter import _patch_attr

    names = _builtins_of(pkg)
    # all of them are replaced together
    if not names or not is_builtin(getattr(pkg, names[0])):
        return
    for name in names:
        _patch_attr(pkg, name, getattr(pkg, name), builder, scope)


@functools.cache
def _builtins_of(pkg: Any) -> tuple[str, ...]:
    """Asked for the first time while they are there."""
    from triton.language.core import is_builtin

    return tuple(name for name in dir(pkg) if is_builtin(getattr(pkg, name, None)))
