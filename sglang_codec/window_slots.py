"""Slots of window layers in a pool of their own, which SGLang names by those of the full layers.

Two rows that share a slot share its place in the window pool, whatever the tree has freed there:
SGLang keeps one place for each slot. Places behind the window of every request are freed and given
away while a plan lives; nothing reads them by then, see `kernels.lengths`.
"""

from __future__ import annotations

from typing import Any

import torch


def in_window_pool(pool: Any, layer_id: int) -> bool:
    """Whether SGLang keeps this layer's tokens in the window pool of `SWAKVPool`."""
    return bool(getattr(pool, "layers_mapping", {}).get(layer_id, (0, False))[1])


class WindowSlots:
    """Where a step's new tokens go, at an address that captured graphs know.

    Read before a replay and never in a graph: the scheduler may give places away while one runs.

    Args:
        pool: SGLang's `SWAKVPool`, its mapping registered. rows: of the largest batch.
    """

    def __init__(self, pool: Any, rows: int) -> None:
        self._pool = pool
        self._kept = torch.zeros(rows, dtype=torch.int64, device=self.places.device)
        self.now = self._kept[:0]

    @property
    def places(self) -> torch.Tensor:
        """``[slots]`` of every slot of the full layers its place."""
        return self._pool.full_to_swa_index_mapping

    def reserve(self, rows: int) -> None:
        """Have room for captured batches of so many rows."""
        if rows > len(self._kept):
            self._kept = self._kept.new_zeros(rows)

    def take(self, slots: torch.Tensor) -> None:
        """Look up a step's slots ``[B]``, with its padding or without: they are `now` then.

        A replayed graph of more rows writes those beyond them to slot 0, as SGLang's padding does.
        """
        places = self.places[slots]
        self.now = places
        if len(slots) <= len(self._kept):
            self.now = self._kept[: len(slots)].copy_(places)
            self._kept[len(slots) :].zero_()
