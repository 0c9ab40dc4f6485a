"""Prefix-shared decode attention: PAC (and POR within it) over the tasks of a plan."""

from __future__ import annotations

import torch

from sglang_codec.buffers import PlanBuffers
from sglang_codec.kernels.launch import LaunchConfig
from sglang_codec.kernels.pac import pac


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
    """Attend with the plan in `buffers`; one launch per task class, no host synchronisation.

    Args:
        q, out: ``[B, Hq, D]``; rows that the plan does not know become zero.
        k_buffer, v_buffer: ``[num_slots, Hkv, D]``.
        lse: fp32 ``[B, Hq]``, base 2, or None.
    """
    layout = buffers.layout
    group = q.shape[1] // k_buffer.shape[1]
    for index, tile in enumerate(config.tiles):
        # no run has more readers than the batch has rows: larger query tiles stay empty
        if index > 0 and q.shape[0] * group <= config.tiles[index - 1].rows:
            break
        pac(
            q,
            k_buffer,
            v_buffer,
            out,
            lse,
            buffers.partial_out,
            buffers.partial_lse,
            buffers.arrivals,
            buffers.plan,
            buffers.kv_index,
            buffers.row_lengths,
            slot_indptr_offset=layout.slot_indptr(index),
            order_offset=layout.order,
            part_indptr_offset=layout.part_indptr,
            tasks_offset=layout.tasks,
            num_slots=layout.classes[index].num_slots,
            sm_scale=sm_scale,
            tile=tile,
            zero_padding=index == 0,
        )
