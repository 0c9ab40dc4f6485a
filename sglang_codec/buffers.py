"""Fixed-capacity device memory of plans and partials: addresses never change, values do."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import torch

from sglang_codec.attention_shape import AttentionShape
from sglang_codec.planning.plan import READ_AHEAD, SPAN_INTS, Plan, PlanCapacity, PlanLayout


class PlanBuffers:
    """Everything on the device that the kernels of one plan read or write besides Q, K, V and O.

    Args:
        layout: sections of the packed plan and the capacities.
        shape: of the layers that are served; a partial row has its query heads, once for each query
            row, and its value dim.
        device: where the tensors live.
    """

    def __init__(self, layout: PlanLayout, shape: AttentionShape, device: torch.device) -> None:
        capacity = layout.capacity
        self.layout, self.window, self.query_rows = layout, shape.seen_tokens, shape.query_rows
        self.device = device
        self.batch = 0  # rows of the plan that was sent last
        self.launches: dict[Hashable, Any] = {}  # on these buffers, to be repeated
        self.plan = torch.zeros(layout.size, dtype=torch.int32, device=device)
        # PAC loads the slots of whole steps, a step ahead: behind the end of the last chunk too
        kv_entries = capacity.kv_index + READ_AHEAD
        self.kv_index = torch.zeros(kv_entries, dtype=torch.int32, device=device)
        bundle_entries = READ_AHEAD + (capacity.bundle_index if layout.has_bundles else 0)
        self.bundle_index = torch.zeros(bundle_entries, dtype=torch.int32, device=device)
        self.bundle_readers = torch.zeros_like(self.bundle_index)
        self.row_lengths = torch.zeros(capacity.rows, dtype=torch.int32, device=device)
        # zeros, not empty: an unwritten partial has weight zero, but zero times NaN is NaN
        rows = (max(capacity.parts, 1), shape.query_rows * shape.num_qo_heads)
        self.partial_out = torch.zeros(*rows, shape.value_dim, dtype=torch.float32, device=device)
        self.partial_lse = torch.full(rows, -float("inf"), device=device)

    @property
    def capacity(self) -> PlanCapacity:
        return self.layout.capacity

    @property
    def nbytes(self) -> int:
        """Device memory in bytes."""
        indices = (self.kv_index, self.bundle_index, self.bundle_readers)
        tensors = (self.plan, *indices, self.row_lengths, self.partial_out, self.partial_lse)
        return sum(tensor.nbytes for tensor in tensors)

    def staging(self) -> torch.Tensor:
        """Host memory for a packed plan, int32 ``[layout.size]``.

        Fresh every time: the host may be a step ahead of a pending copy, and the caching host
        allocator reuses the memory only after the copy.
        """
        return torch.empty(
            self.layout.size, dtype=torch.int32, pin_memory=self.device.type == "cuda"
        )

    def send(
        self, staging: torch.Tensor, *, used: int, num_spans: int, batch: int
    ) -> torch.Tensor:
        """Make the packed plan in `staging`, one of `batch` rows, the current one.

        A single host-to-device copy on the current stream.

        Returns:
            The plan's spans on the device, int32 ``[S, 4]``.
        """
        self.plan.narrow(0, 0, used).copy_(staging.narrow(0, 0, used), non_blocking=True)
        self.batch = batch
        spans = num_spans * SPAN_INTS
        return self.plan.narrow(0, used - spans, spans).view(num_spans, SPAN_INTS)

    def sent(self, spans: np.ndarray) -> torch.Tensor:
        """Spans that are no new plan's on the device, int32 ``[S, 4]``."""
        staging = torch.from_numpy(spans)
        if self.device.type == "cuda":
            staging = staging.pin_memory()
        return staging.to(self.device, non_blocking=True)

    def upload(self, plan: Plan) -> torch.Tensor:
        """Pack and send `plan`; its spans on the device, int32 ``[S, 4]``.

        Raises:
            PlanCapacityError: the plan does not fit; the buffers are unchanged.
        """
        staging = self.staging()
        used = self.layout.pack(plan, staging.numpy())
        return self.send(staging, used=used, num_spans=len(plan.spans), batch=plan.batch)
