"""What an adapter hands to the benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from library.attention.problem import Problem
from library.attention.timing import Run


class Unsupported(Exception):
    """The peer cannot run this scenario."""


@dataclass
class Runner:
    """One variant of a peer on one problem.

    Args:
        run: attention of one layer, `[batch, num_qo_heads, value_dim]`.
        variant: what distinguishes it from the peer's other variants.
        position: row of the output that holds each request, where not the request's own.
        notes: measured or reported beside the time, merged into the row.
        capturable: whether a CUDA graph can hold `run`.
    """

    run: Run
    variant: str = ""
    position: torch.Tensor | None = None
    notes: dict[str, object] = field(default_factory=dict)
    capturable: bool = True


Adapter = Callable[[Problem], list[Runner]]
