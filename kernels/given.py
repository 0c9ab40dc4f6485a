"""What the host side of a kernel says of tensors that it cannot take."""

from __future__ import annotations

from typing import NoReturn

import torch


def is_lse(lse: torch.Tensor | None, rows_and_heads: tuple[int, ...]) -> bool:
    """Whether an LSE can be written where the kernels expect it, or is not wanted."""
    return lse is None or (
        lse.shape == rows_and_heads and lse.dtype == torch.float32 and lse.is_contiguous()
    )


def are_sinks(sinks: torch.Tensor | None, num_qo_heads: int) -> bool:
    """Whether there is a sink for each query head where the kernels expect it, or none at all."""
    return sinks is None or (
        sinks.shape == (num_qo_heads,) and sinks.is_floating_point() and sinks.is_contiguous()
    )


def refuse(kernel: str, needs: str, **given: torch.Tensor | None) -> NoReturn:
    """Raise ValueError with what `kernel` needs and the tensors it was given.

    The conditions stand with the kernels, as one expression each over shapes and strides that are
    asked for once: SGLang calls them per layer, and a tensor takes 0.1 us to answer.
    """
    tensors = ", ".join(
        f"{name} {tuple(tensor.shape)} of {tensor.dtype} with strides {tensor.stride()}"
        for name, tensor in given.items()
        if tensor is not None
    )
    raise ValueError(f"{kernel} needs {needs}; got {tensors}")
