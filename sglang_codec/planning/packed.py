"""A plan on its way to the device, and the little that the host remembers of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sglang_codec.planning.entries import MOST_ROOM
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.plan import Plan, PlanLayout


class PackedPlan(NamedTuple):
    """What a packed plan holds, in the order of `entries.REPORT`.

    Args:
        used: elements of the packed plan; the spans come last.
        num_spans: rows of `Plan.spans`; longest_span: tokens of the longest one.
        kv_tokens_read, kv_tokens_stock: as of `Plan`, per KV head.
        num_shared, depth: as of `PrefixForest`.
        max_lengths: int32 ``[B]``, as of `Plan`; room: tokens by which every row may grow to them.
    """

    used: int
    num_spans: int
    longest_span: int
    kv_tokens_read: int
    kv_tokens_stock: int
    room: int
    num_shared: int
    depth: int
    max_lengths: np.ndarray


def pack(
    forest: PrefixForest | None, plan: Plan, layout: PlanLayout, out: np.ndarray
) -> PackedPlan:
    """Write `plan` into `out` (int32 ``[layout.size]``).

    Args:
        forest: what the plan was made of, None if it knows of no sharing.
    """
    shared = forest is not None
    return PackedPlan(
        used=layout.pack(plan, out),
        num_spans=len(plan.spans),
        longest_span=int(plan.spans[:, 2].max(initial=0)),
        kv_tokens_read=plan.kv_tokens_read,
        kv_tokens_stock=plan.kv_tokens_stock,
        max_lengths=plan.max_lengths,
        room=int((plan.max_lengths - plan.lengths).min(initial=MOST_ROOM)),
        num_shared=forest.num_shared if shared else 0,
        depth=forest.depth if shared else int(len(plan.spans) > 0),
    )
