"""A launch once more: what Triton finds out about the arguments of every launch, it is told once.

Triton looks at every argument of a launch to choose what it has compiled. Between two launches of a
layer most arguments are the same tensors, so what was launched is kept and called again with new
addresses. `scripts/kernels/bench_launches.py` measures what the host saves.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch

_ALIGNED_BYTES = 16  # Triton compiles for addresses that are multiples of it, and for others

Arguments = TypeVar("Arguments", bound=NamedTuple)


def alike(*tensors: torch.Tensor) -> tuple[Any, ...]:
    """Equal for tensors that a kept launch takes alike, whatever their addresses and rows."""
    same: list[Any] = []
    for tensor in tensors:
        same += tensor.dtype, tensor.shape[1:], tensor.stride(), tensor.data_ptr() % _ALIGNED_BYTES
    return tuple(same)


def addresses(arguments: Arguments) -> Arguments:
    """The arguments with addresses in place of tensors, which the caller has to keep."""
    values = (a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments)
    return type(arguments)._make(values)
