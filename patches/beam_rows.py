"""Beam search (SGLang 0.5.21 and newer): rows behind the requests' rows that alias their leader.

After the leader's prefill SGLang copies the leader's `req_to_token` entries of the whole prompt to
each member's row. Nothing rewrites them afterwards: a leader is neither inserted into the tree nor
retracted while its group lives. Between two steps the device permutes what follows the prompt, so
nothing beyond it is proven, the leader's own row included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sglang_codec.planning.paths import RadixPaths


class BeamRows(NamedTuple):
    """Batch rows `first .. last - 1` hold the KV slots of row `leader` in `prompt_len` tokens."""

    leader: int
    first: int
    last: int
    prompt_len: int


def beam_rows(batch: Any, rows: int) -> tuple[BeamRows, ...]:
    """The beam groups whose member rows this `ScheduleBatch` of `rows` rows carries."""
    tail = getattr(batch, "beam_tail", None)
    if tail is None:
        return ()
    base = tail.num_base_rows
    groups = tuple(
        BeamRows(entry.leader_idx, base + entry.start, base + entry.end, entry.group.prompt_len)
        for entry in tail.entries
    )
    for group, entry in zip(groups, tail.entries, strict=True):
        if entry.group.leader is not batch.reqs[group.leader] or not (
            len(batch.reqs) <= group.first <= group.last <= rows
        ):
            raise ValueError(
                f"{group} is not in a batch of {len(batch.reqs)} requests and {rows} rows"
            )
    return groups


def with_members(paths: RadixPaths, rows: int, groups: Sequence[BeamRows]) -> RadixPaths:
    """Paths of all `rows`: members read their leader's path and the rest of its prompt.

    Args:
        paths: of the requests' rows; rows of no group behind them stay private.
    """
    parent, end = list(paths.parent), list(paths.end)
    leaf = np.full(rows, -1, np.int32)
    leaf[: paths.batch] = paths.leaf
    for group in groups:
        node = leaf[group.leader]
        while node >= 0 and end[node] > group.prompt_len:
            node = parent[node]
        if node == leaf[group.leader] and (node < 0 or end[node] < group.prompt_len):
            parent.append(node)
            end.append(group.prompt_len)
            node = leaf[group.leader] = len(end) - 1
        leaf[group.first : group.last] = node
    return RadixPaths(np.array(parent, np.int32), np.array(end, np.int32), leaf)
