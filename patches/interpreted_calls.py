"""Let Triton's interpreter look through its language once, and not at every call of a function."""

from __future__ import annotations

import functools
from typing import Any


def look_once() -> None:
    """Outside of kernels, before the first one is interpreted; idempotent.

    Why: the language's builtins are replaced while a kernel is interpreted, and looked for again in
    every call of a function by it, by `inspect.getmembers`, though nothing is left to replace: a
    quarter of what decode steps on a CPU take.
    Upstream: `triton.runtime.interpreter._patch_builtin(pkg, builder, scope)`, of Triton 3.6 and
    3.7; what it has replaced is no builtin until the kernel ends.
    Remove when: a call within a kernel replaces nothing.
    """
    from triton.runtime import interpreter

    # another Triton is interpreted as slowly as it is
    if hasattr(interpreter, "_patch_builtin") and hasattr(interpreter, "_patch_attr"):
        interpreter._patch_builtin = _replace_builtins


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
