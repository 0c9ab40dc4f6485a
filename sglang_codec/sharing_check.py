"""The debug invariant: members of a shared run hold the same KV slots, compared on the device."""

from __future__ import annotations

import torch

from sglang_codec.planning.forest import PrefixForest


class SharingMismatch(RuntimeError):
    """The tree said that rows share KV slots, but their `req_to_token` entries differ."""


def check_sharing(
    forest: PrefixForest, req_to_token: torch.Tensor, pool_rows: torch.Tensor
) -> None:
    """Compare every reader of every shared run with the first one.

    Args:
        req_to_token: int32 ``[pool rows, max context]``. pool_rows: ``[B]`` the batch's pool rows.

    Raises:
        SharingMismatch: naming the run, the rows and the first differing token.
    """
    for node in range(forest.num_shared):
        rows = torch.from_numpy(forest.order[forest.first[node] : forest.last[node]]).long()
        start, length = int(forest.start[node]), int(forest.length[node])
        slots = req_to_token[pool_rows[rows.to(pool_rows.device)], start : start + length]
        differs = (slots != slots[0]).nonzero()
        if len(differs):
            member, token = differs[0].tolist()
            raise SharingMismatch(
                f"shared run {node} (tokens {start}..{start + length - 1}, {len(rows)} readers): "
                f"rows {int(rows[0])} and {int(rows[member])} differ at token {start + token}: "
                f"slots {int(slots[0, token])} and {int(slots[member, token])}"
            )
