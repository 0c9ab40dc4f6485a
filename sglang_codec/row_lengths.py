"""How long the rows of a step are, as far as the host knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_codec.patches.fallbacks import FALLBACKS


@dataclass(frozen=True, slots=True)
class RowLengths:
    """KV tokens of a batch's rows in a step, their new ones included, as far as the host knows.

    Args:
        least: int32 ``[B]``; what plans are made for. most: int32 ``[B]``; equal to `least` where
            the host knows.
        new: tokens of each row that are new in this step, by which its next step is longer at most.
    """

    least: np.ndarray
    most: np.ndarray
    new: int = 1

    @classmethod
    def known(cls, lengths: np.ndarray, new: int = 1) -> RowLengths:
        lengths = np.array(lengths, np.int32)
        return cls(lengths, lengths, new)

    @property
    def are_known(self) -> bool:
        return self.most is self.least

    def follow(self, earlier: RowLengths) -> bool:
        """Whether these may be the rows of the step before, one step later.

        Without speculation they are one token longer exactly: a step that this backend did not see
        (a mixed batch that the prefill backend attended whole) has left a slot that no one appended
        to the KV index. What the host does not know may have grown by nothing.
        """
        if self.new == 1:
            return (earlier.least + 1).tobytes() == self.least.tobytes()
        if self.least.shape != earlier.least.shape:
            return False
        grown = self.least - earlier.least
        return bool(((grown >= int(self.are_known)) & (grown <= self.new)).all())

    def most_grown_since(self, planned: np.ndarray) -> int:
        """The most tokens that a row has more, int32 ``[B]`` being those of a step before."""
        # without speculation all rows have grown alike, and cold caches make NumPy dear
        if self.new == 1 and self.are_known and len(planned):
            return int(self.most[0]) - int(planned[0])
        return int((self.most - planned).max(initial=0))

    def grown_since(self, earlier: RowLengths) -> int:
        """Tokens that these rows have more than one step before, all together."""
        if self.new == 1:
            return len(self.least)
        return int((self.least - earlier.least).sum())


def lengths_of(
    forward_batch: Any, rows: int, new: int, least: np.ndarray | None, most: int
) -> RowLengths:
    """The lengths of the first `rows` rows of SGLang's batch, which leaves out what is verified.

    Args:
        new: tokens of each row that are new in this step; all of them are verified if several.
        least: without these, what rows hold at least, where the host's lengths are not known.
        most: tokens that a row may ever hold.
    """
    lengths, verified = forward_batch.seq_lens_cpu, new if new > 1 else 0
    if lengths is None and rows == 0:
        return RowLengths.known(np.zeros(0, np.int32), new)
    if least is not None:
        # not known is what the step before accepted, of as many as are new in this one
        least = least + verified
        return RowLengths(least, np.minimum(least + new, most).astype(np.int32), new)
    if lengths is None:  # a batch without a host copy: wait for the device's
        FALLBACKS.record("sequence lengths only on the device (a synchronisation)")
        lengths = forward_batch.seq_lens.cpu()
    known = np.add(lengths.numpy()[:rows], verified, dtype=np.int32, casting="same_kind")
    return RowLengths(known, known, new)
