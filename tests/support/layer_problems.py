"""Small batches of layers that have something of their own: fp8, sinks, caps, widths."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from sglang_codec.testing import Counts, Paths, Problem, make_problem, with_slots


def layer_problem(
    counts: Counts,
    device: torch.device,
    dtype: torch.dtype,
    *,
    group: int = 4,
    padding: int = 2,
    head_dim: int = 64,
    value_dim: int | None = None,
    kv_dtype: torch.dtype | None = None,
    sinks: Any = None,
    **of_layer: Any,
) -> tuple[Paths, Problem]:
    """A batch with two KV heads and the paths of its rows, `padding` more rows behind them.

    Args:
        sinks: a value for each query head, or drawn if True. of_layer: fields of `Problem`.
    """
    paths = with_slots(counts, seed=3, spare=20)
    problem = make_problem(
        paths,
        num_qo_heads=2 * group,
        num_kv_heads=2,
        head_dim=head_dim,
        dtype=dtype,
        device=device,
        padding=padding,
        value_dim=value_dim,
        kv_dtype=kv_dtype,
    )
    if sinks is True:
        sinks = 2 * torch.randn(2 * group, generator=torch.Generator().manual_seed(1)) + 3
    if sinks is not None:
        of_layer["sinks"] = torch.as_tensor(sinks, dtype=dtype, device=device)
    return paths, dataclasses.replace(problem, **of_layer)
