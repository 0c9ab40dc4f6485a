"""The fp64 oracle: what decode attention is, without any kernel, plan or sharing."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def decode_attention(
    q: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    rows: Sequence[torch.Tensor],
    sm_scale: float,
    *,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    window: int = 0,
    query_rows: int = 1,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact attention of each row over its own KV slots, in float64.

    Args:
        q: ``[B * query_rows, Hq, Dk]``.
        k_buffer, v_buffer: ``[num_slots, Hkv, Dk]`` and ``[.., Dv]``.
        rows: for each row its KV slots, in token order.
        soft_cap: scaled scores are bent into (-soft_cap, soft_cap) by tanh.
        sinks: ``[Hq]``, for each query head one more score, whose value is zero.
        window: the newest tokens of each row that it sees; 0 for all.
        query_rows: newest tokens of each row that attend, each to all up to itself.
        k_scale, v_scale: factors of what the buffers hold.

    Returns:
        float64 ``[B * query_rows, Hq, Dv]`` and the base-2 log-sum-exp ``[B * query_rows, Hq]``,
        sinks included. A row without tokens is zero with LSE -inf.
    """
    batch, num_qo_heads, key_dim = q.shape
    _, num_kv_heads, value_dim = v_buffer.shape
    out = torch.zeros(batch, num_qo_heads, value_dim, dtype=torch.float64, device=q.device)
    lse = torch.full((batch, num_qo_heads), -float("inf"), dtype=torch.float64, device=q.device)
    for row, slots in enumerate(rows_seen(rows, window=window, query_rows=query_rows)):
        if not len(slots):
            continue
        slots = slots.to(q.device, torch.int64)
        k, v = k_scale * k_buffer[slots].double(), v_scale * v_buffer[slots].double()
        grouped = q[row].double().view(num_kv_heads, -1, key_dim)
        scores = torch.einsum("hgd,nhd->hgn", grouped, k) * sm_scale
        if soft_cap is not None:
            scores = soft_cap * (scores / soft_cap).tanh()
        if sinks is not None:
            sink = sinks.double().view(num_kv_heads, -1, 1)
            scores, v = torch.cat([scores, sink], -1), torch.cat([v, torch.zeros_like(v[:1])])
        out[row] = torch.einsum("hgn,nhd->hgd", scores.softmax(-1), v).reshape(-1, value_dim)
        lse[row] = (scores.logsumexp(-1) / 0.6931471805599453).reshape(-1)
    return out, lse


def rows_seen(
    rows: Sequence[torch.Tensor], *, window: int = 0, query_rows: int = 1
) -> list[torch.Tensor]:
    """Of each query row the KV slots that it sees, in the order of q."""
    return [
        slots[: max(len(slots) - newer, 0)][-window:]
        for slots in rows
        for newer in range(query_rows - 1, -1, -1)
    ]
