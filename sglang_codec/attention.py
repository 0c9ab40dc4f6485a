"""Prefix-shared decode attention: PAC over the tasks of a plan, then POR over its partials."""

from __future__ import annotations

import torch

from sglang_codec.buffers import PlanBuffers
from sglang_codec.kernels.launch import LaunchConfig
from sglang_codec.kernels.pac import pac
from sglang_codec.kernels.por import por


def prefix_shared_attention(
    q: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    out: torch.Tensor,
    buffers: PlanBuffers,
    *,
    sm_scale: float,
    config: LaunchConfig,
    lse: torch.Tensor | None = None,
) -> None:
    """Attend with the plan in `buffers`; two launches, no host synchronisation.

    Args:
        q, out: ``[B, Hq, D]``; rows that the plan does not know become zero.
        k_buffer, v_buffer: ``[num_slots, Hkv, D]``.
        lse: fp32 ``[B, Hq]``, base 2, or None.
    """
    layout = buffers.layout
    pac(
        q,
        k_buffer,
        v_buffer,
        out,
        lse,
        buffers.partial_out,
        buffers.partial_lse,
        buffers.plan,
        buffers.kv_index,
        buffers.row_lengths,
        order_offset=layout.order,
        tasks_offset=layout.tasks,
        num_slots=layout.num_slots,
        sm_scale=sm_scale,
        config=config,
    )
    por(
        out,
        lse,
        buffers.partial_out,
        buffers.partial_lse,
        buffers.plan,
        part_indptr_offset=layout.part_indptr,
    )
