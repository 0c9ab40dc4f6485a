"""Prefix-shared decode attention: PAC over the tasks of a plan, then POR over its partials."""

from __future__ import annotations

import torch

from sglang_codec.buffers import PlanBuffers
from sglang_codec.kernels.again import alike
from sglang_codec.kernels.kv_index import gather_slots
from sglang_codec.kernels.launch import LaunchConfig
from sglang_codec.kernels.lengths import follow_lengths
from sglang_codec.kernels.pac import pac
from sglang_codec.kernels.por import por
from sglang_codec.planning.plan import MOST_PIECES


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
    sinks: torch.Tensor | None = None,
    soft_cap: float | None = None,
    k_scale: float | None = None,
    v_scale: float | None = None,
) -> None:
    """Attend with the plan in `buffers`; two launches, no host synchronisation.

    Args:
        q, out: ``[B * n, Hq, Dk]`` and ``[B * n, Hq, Dv]`` with the `n` query rows of the buffers'
            shape, request by request; what the plan does not know becomes zero.
        k_buffer, v_buffer: ``[num_slots, Hkv, Dk]`` and ``[num_slots, Hkv, Dv]``, in the dtype of q
            or in fp8.
        lse: fp32 ``[B * n, Hq]``, base 2, or None.
        sinks: ``[Hq]`` floats, for each query head a logit that takes part in the softmax and has
            no value; `sm_scale` is not for them. A row without tokens stays zero.
        soft_cap: scaled scores are bent into (-soft_cap, soft_cap) by tanh; None for no cap.
        k_scale, v_scale: what K and V were divided by when they were stored; None for 1.

    Raises:
        ValueError: fewer rows than the plan has, or shapes, dtypes or strides that do not match.
    """
    layout = buffers.layout
    query_rows = buffers.query_rows
    if q.shape[0] < buffers.batch * query_rows:
        raise ValueError(
            f"q has {q.shape[0]} rows, but the plan is for {buffers.batch * query_rows}; plan again"
        )
    if q.stride()[-1] != 1:
        q = q.contiguous()
    if k_scale is not None:
        sm_scale *= k_scale
    of_tensors = alike(q, k_buffer, v_buffer, out)
    of_layer = (sm_scale, soft_cap, v_scale, buffers.window)
    key = (k_buffer.data_ptr(), v_buffer.data_ptr(), *of_layer, of_tensors)
    if sinks is not None:
        key += sinks.data_ptr(), alike(sinks)
    if lse is None and out.shape[0] == q.shape[0] and (kept := buffers.launches.get(key)):
        pac_again, por_again, config_then = kept
        if config is config_then:
            pac_again(q, out)
            por_again(out)
            return
    pac_again = pac(
        q,
        k_buffer,
        v_buffer,
        out,
        lse,
        buffers.partial_out,
        buffers.partial_lse,
        buffers.plan,
        buffers.kv_index,
        buffers.bundle_index,
        buffers.bundle_readers,
        order_offset=layout.order,
        tasks_offset=layout.tasks,
        num_slots=layout.num_slots,
        sm_scale=sm_scale,
        config=config,
        sinks=sinks,
        soft_cap=soft_cap,
        row_lengths=buffers.row_lengths if buffers.window or query_rows > 1 else None,
        window=buffers.window,
        query_rows=query_rows,
        v_scale=v_scale,
    )
    por_again = por(
        out,
        lse,
        buffers.partial_out,
        buffers.partial_lse,
        buffers.plan,
        merges_offset=layout.merges,
        early_launch=config.early_launch,
        sinks=sinks,
        query_rows=query_rows,
    )
    if pac_again and por_again:
        buffers.launches[key] = pac_again, por_again, config


def fill_kv_index(
    buffers: PlanBuffers,
    table: torch.Tensor,
    pool_rows: torch.Tensor,
    spans: torch.Tensor,
    *,
    longest: int,
    moved_to: torch.Tensor | None = None,
) -> None:
    """Gather the KV slots of a plan that was just sent, or of rows that have moved.

    Args:
        table: ``[pool rows, max context]`` int32, SGLang's `req_to_token`.
        pool_rows: ``[B]`` the rows' places in it.
        spans: int32 ``[S, 4]`` on the device; the longest has `longest` tokens.
        moved_to: as of `gather_slots`.

    Raises:
        ValueError: dtypes or strides that do not match.
    """
    if not len(spans):
        return
    places = None if moved_to is None else (moved_to.data_ptr(), alike(moved_to))
    key = (table.data_ptr(), places, alike(pool_rows, spans))
    if again := buffers.launches.get(key):
        again(pool_rows, spans, longest)
        return
    index = buffers.kv_index
    how = {"longest": longest, "moved_to": moved_to}
    if again := gather_slots(index, table, pool_rows, spans, **how):
        buffers.launches[key] = again


def update_lengths(buffers: PlanBuffers) -> None:
    """Make the plan in `buffers` follow its `row_lengths`; once per step, before the first layer.

    Closed chunks keep their lengths, so a plan without headroom needs this once; those of layers
    with a window move on with their rows, whose lengths must be there and must not shrink.
    """
    layout = buffers.layout
    follow_lengths(
        buffers.plan,
        buffers.row_lengths,
        buffers.kv_index,
        buffers.bundle_index,
        buffers.bundle_readers,
        tasks_offset=layout.tasks,
        append_base_offset=layout.append_base,
        task_counts=layout.task_counts,
        most_pieces=MOST_PIECES,
        has_bundles=layout.has_bundles,
        order_offset=layout.order if buffers.window else None,
        window=buffers.window,
        query_rows=buffers.query_rows,
    )
