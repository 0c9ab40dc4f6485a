"""Warps with different roles in one program, without moving registers between them.

Gluon lets a program hand its warps different functions. Up to Triton 3.6 it always moves registers
between them, too, and ptxas then finds too few for the matrix products of a role and waits for each
one (C7512); from 3.7 on the register counts can be left out.
"""

from __future__ import annotations

import inspect
from typing import Any

from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language._core import builtin

_COUNTS_ARE_OPTIONAL = (
    inspect.signature(gl.warp_specialize).parameters["worker_num_regs"].default is None
)

# every warp of the role waits for the others; renamed in Triton 3.7
role_barrier = getattr(gl, "barrier", None) or gl.thread_barrier


class _Without:
    """An object of the compiler, but for one method of it."""

    def __init__(self, wrapped: Any, name: str, method: Any) -> None:
        self._wrapped = wrapped
        setattr(self, name, method)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


@builtin
def specialize(functions_and_args, worker_num_warps, _semantic=None, _generator=None):
    """`gl.warp_specialize` in which every warp keeps the registers that it was launched with."""
    both = {"_semantic": _semantic, "_generator": _generator}
    if _COUNTS_ARE_OPTIONAL:
        return gl.warp_specialize(functions_and_args, worker_num_warps, **both)
    builder = _semantic.builder

    def create(*args: Any) -> _Without:
        made = builder.create_warp_specialize(*args)
        return _Without(made, "set_requested_registers", lambda counts: None)

    _semantic.builder = _Without(builder, "create_warp_specialize", create)
    try:
        ignored = [0] * len(worker_num_warps)
        return gl.warp_specialize(functions_and_args, worker_num_warps, ignored, **both)
    finally:
        _semantic.builder = builder
