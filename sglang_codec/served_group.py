"""The layers of one shape while they are served: their planner, buffers and launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sglang_codec.attention import fill_kv_index, prefix_shared_attention, update_lengths
from sglang_codec.attention_layers import scales_of
from sglang_codec.batch_planner import MovedRows, NewPlan
from sglang_codec.buffers import PlanBuffers
from sglang_codec.device import cost_model, describe_device, plan_spec
from sglang_codec.kernels.kv_index import append_slots
from sglang_codec.kv_writer import KVWriter
from sglang_codec.layer_groups import LayerGroup
from sglang_codec.plan_maker import PlanMaker
from sglang_codec.planning.capacity import capacity_for
from sglang_codec.planning.plan import PlanLayout
from sglang_codec.window_slots import WindowSlots, in_window_pool

# tokens by which tails may grow before a batch is planned again, and steps that these last at least
TAIL_HEADROOM = 128
STEPS = 16


def tail_headroom(query_rows: int) -> int:
    """Tokens of room in tails: for `STEPS`, and one whose outcome the host does not know."""
    return max(TAIL_HEADROOM, (STEPS + 1) * query_rows)


class ServedGroup:
    """Plans and launches for the layers of `group`.

    Args:
        pool: SGLang's KV pool. rows: of its table of requests.
        host_rows: as of `PlanMaker`. exact_weights: as of `LaunchConfig`.
    """

    def __init__(
        self,
        group: LayerGroup,
        pool: Any,
        device: torch.device,
        *,
        rows: int,
        host_rows: Callable[[Any, np.ndarray], list[np.ndarray]],
        exact_weights: bool = True,
    ) -> None:
        self.group, self._pool = group, pool
        machine = describe_device(device, group.shape, exact_weights=exact_weights)
        self._config = machine.config
        self._writer = KVWriter(pool, machine.config)
        is_apart = in_window_pool(pool, group.layer_ids[0])
        self.window_slots = WindowSlots(pool, rows) if is_apart else None
        # of fp8 layers, by id: the layer, and the scales of its latest launch
        self._read_with: dict[int, tuple[Any, tuple[float | None, float | None]]] = {}
        headroom = tail_headroom(group.shape.query_rows)
        spec = plan_spec(machine, group.shape, tail_headroom=headroom)
        pool_slots = pool.get_key_buffer(group.layer_ids[0]).shape[0]
        layout = PlanLayout.of(capacity_for(spec, rows=rows, pool_slots=pool_slots), spec)
        self.buffers = PlanBuffers(layout, group.shape, device)
        costs = cost_model(machine, spec)
        self.maker = PlanMaker(spec, costs, layout, self.buffers.staging, host_rows)

    @property
    def weight(self) -> int:
        """KV heads of all its layers."""
        return len(self.group.layer_ids) * self.group.shape.num_kv_heads

    @property
    def limits(self) -> str:
        """The capacities, for the start-up banner."""
        capacity = self.buffers.capacity
        return (
            f"rows {capacity.rows}, tasks {capacity.tasks}, parts {capacity.parts}, "
            f"KV index {capacity.kv_index}, {self.buffers.nbytes / 2**20:.0f} MiB"
        )

    def send(self, new: NewPlan | MovedRows, table: torch.Tensor, pool_rows: torch.Tensor) -> None:
        """Make `new` the current plan and fill the KV index from `table`, SGLang's `req_to_token`.

        Args:
            pool_rows: ``[B]`` the rows' places in `table`.
        """
        spans, longest = sent_spans(self.buffers, new)
        places = self.window_slots.places if self.window_slots else None
        fill_kv_index(self.buffers, table, pool_rows, spans, longest=longest, moved_to=places)

    def take(self, slots: torch.Tensor) -> None:
        """Before a step, on the device but in no graph: its new tokens' slots ``[B * n]``."""
        if self.window_slots:
            self.window_slots.take(slots)

    def record(self, seq_lens: torch.Tensor, slots: torch.Tensor) -> None:
        """Take over a step's lengths and append its new KV slots, on the device.

        Args:
            seq_lens: ``[B]`` tokens of each row, its ``n`` new ones included. slots: ``[B * n]``
                theirs, row by row.
        """
        append_slots(
            self.buffers.kv_index,
            self.buffers.row_lengths,
            self.buffers.plan,
            seq_lens,
            self.window_slots.now if self.window_slots else slots,
            append_base_offset=self.buffers.layout.append_base,
            windowed=self.buffers.window > 0,
            query_rows=self.buffers.query_rows,
        )
        update_lengths(self.buffers)

    def attend(
        self,
        q: torch.Tensor,
        layer: Any,
        *,
        out: torch.Tensor | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``q [..., Hq, Dk]`` or ``[..., Hq * Dk]`` of one layer -> ``[B * n, Hq * Dv]``, in `out`.

        Args:
            sinks: ``[Hq]`` floats, or None.
        """
        shape = self.group.shape
        q = q.reshape(-1, shape.num_qo_heads, shape.key_dim)
        values = (*q.shape[:2], shape.value_dim)
        k_scale = v_scale = None
        if shape.is_fp8:
            k_scale, v_scale = scales_of(layer)
            self._read_with[layer.layer_id] = layer, (k_scale, v_scale)
        out = q.new_empty(values) if out is None else out.view(values)
        prefix_shared_attention(
            q,
            self._pool.get_key_buffer(layer.layer_id),
            self._pool.get_value_buffer(layer.layer_id),
            out,
            self.buffers,
            sm_scale=layer.scaling,
            config=self._config,
            sinks=sinks,
            soft_cap=shape.soft_cap,
            k_scale=k_scale,
            v_scale=v_scale,
        )
        return out.view(len(q), -1)

    def reads_as_it_is_written(self) -> bool:
        """Whether fp8 is read with the scales that it is written with.

        Those of a read are numbers in a captured graph; SGLang's write divides by what is in the
        layer, which loading weights may change.
        """
        return all(scales_of(layer) == scales for layer, scales in self._read_with.values())

    def write(self, layer: Any, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor) -> None:
        """Put a step's keys and values of one layer into the pool."""
        places = self.window_slots.now if self.window_slots else None
        self._writer.write(layer, k, v, slots, places)


def sent_spans(buffers: PlanBuffers, new: NewPlan | MovedRows) -> tuple[torch.Tensor, int]:
    """Send `new`; on the device what to gather for it, int32 ``[S, 4]``, and the longest span."""
    if isinstance(new, MovedRows):
        return buffers.sent(new.spans), int(new.spans[:, 2].max(initial=0))
    packed = new.packed
    spans = buffers.send(
        new.staging, used=packed.used, num_spans=packed.num_spans, batch=len(packed.max_lengths)
    )
    return spans, new.longest_span
