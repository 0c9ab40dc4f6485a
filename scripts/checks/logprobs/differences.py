"""How far two backends' log-probabilities of the same tokens are apart, decode step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from library.servers.backends import uses_codec
from library.servers.clients import Completion

JUDGED = (0.5, 0.9, 0.99)
# what two halves of the same few thousand positions differ by
SLACK = 1.1
_SHARES = (*np.linspace(0, 0.99, 100), 0.995, 0.998, 0.999, 1.0)


@dataclass(frozen=True, slots=True)
class Difference:
    """Absolute differences between two backends.

    Args:
        values: one per decode step whose preceding tokens both have. parted: requests in which
            they then chose different tokens. unseen: steps at which one's token was not among
            the other's most likely ones.
    """

    first: str
    second: str
    values: np.ndarray
    parted: int
    unseen: int

    @property
    def is_ours(self) -> bool:
        """Codec against a stock backend."""
        return uses_codec(self.first) != uses_codec(self.second)

    def as_json(self) -> dict[str, Any]:
        values = self.values
        quantiles = np.quantile(values, _SHARES) if len(values) else []
        return {
            "first": self.first,
            "second": self.second,
            "is_ours": self.is_ours,
            "positions": len(values),
            "requests_parted": self.parted,
            "unseen": self.unseen,
            "equal": float(np.mean(values == 0)) if len(values) else None,
            "mean": float(values.mean()) if len(values) else None,
            "quantiles": list(zip(_SHARES, quantiles, strict=False)),
        }


def compare(
    first: str, second: str, ours: Sequence[Completion], theirs: Sequence[Completion]
) -> Difference:
    """Steps after the first token (which prefill made), up to the first different one."""
    values, parted, unseen = [], 0, 0
    for one, other in zip(ours, theirs, strict=True):
        for step, token in enumerate(one.output_ids):
            if step:
                found = dict(other.top_logprobs[step]).get(token)
                if found is None:
                    unseen += 1
                else:
                    values.append(abs(dict(one.top_logprobs[step])[token] - found))
            if token != other.output_ids[step]:
                parted += 1
                break
    return Difference(first, second, np.array(values), parted, unseen)


def compare_all(runs: Mapping[str, Sequence[Completion]]) -> list[Difference]:
    """Every pair of backends, codec first."""
    names = sorted(runs, key=lambda name: not uses_codec(name))
    return [compare(a, b, runs[a], runs[b]) for a, b in combinations(names, 2)]


def verdict(differences: Sequence[Difference]) -> dict[str, Any]:
    """Whether the widest difference of ours exceeds the widest between two stock backends."""
    ours = [d.values for d in differences if d.is_ours]
    stock = [d.values for d in differences if not d.is_ours]
    if not ours or not stock or not all(map(len, (*ours, *stock))):
        return {"no_wider": None, "why": "needs codec and two stock backends that answered"}
    widest = {
        f"p{100 * share:g}": {
            "codec_to_stock": max(float(np.quantile(values, share)) for values in ours),
            "stock_to_stock": max(float(np.quantile(values, share)) for values in stock),
        }
        for share in JUDGED
    }
    holds = all(w["codec_to_stock"] <= SLACK * w["stock_to_stock"] for w in widest.values())
    return {"no_wider": holds, "slack": SLACK, "widest": widest}
