"""The public API: plan once per batch, run once per layer."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch

from sglang_codec.attention import prefix_shared_attention, update_lengths
from sglang_codec.attention_shape import AttentionShape
from sglang_codec.buffers import PlanBuffers
from sglang_codec.device import cost_model, describe_device, plan_spec
from sglang_codec.kernels.given import are_sinks
from sglang_codec.kernels.launch import LaunchConfig
from sglang_codec.planning.cost_model import CostModel
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.index import kv_index_of
from sglang_codec.planning.plan import Plan, PlanCapacity, PlanLayout, PlanSpec
from sglang_codec.planning.planner import Cut, Planner, make_ready
from sglang_codec.shape_support import why_query_rows, why_unsupported

_MAX_SLOT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class CapturedLimits:
    """What every captured `run` can serve, whose tensors a replay does not change.

    Args:
        rows: of q and the output. slots: of the smaller KV buffer.
    """

    rows: int
    slots: int

    def within(self, other: CapturedLimits | None) -> CapturedLimits:
        """The limits of both."""
        if other is None:
            return self
        return CapturedLimits(min(self.rows, other.rows), min(self.slots, other.slots))

    def check(self, rows: int, highest_slot: int) -> None:
        """Raise ValueError for a plan that a replay would read or write out of bounds for."""
        remedy = "use a wrapper of its own for what is larger, and capture that"
        if rows > self.rows:
            raise ValueError(
                f"the plan has {rows} rows, but a CUDA graph was captured with a q of "
                f"{self.rows}; {remedy}"
            )
        if highest_slot >= self.slots:
            raise ValueError(
                f"the plan uses KV slot {highest_slot}, but a CUDA graph was captured with buffers "
                f"of {self.slots} slots; {remedy}"
            )


class PrefixSharedDecodeWrapper:
    """Decode attention that reads each shared KV run once for all requests that need it.

    ``plan`` takes the forest of a batch, ``run`` attends for one layer. ``run`` can be captured in
    a CUDA graph; a later ``plan`` takes effect at the next replay, and is refused if it does not
    fit the buffers or what was captured (rows of `q`, slots of the KV buffers).

    Args:
        num_qo_heads: query heads, a multiple of `num_kv_heads`; at most 16 per KV head.
        num_kv_heads: KV heads.
        head_dim_qk: of a query and a key head, head_dim_vo: of a value head and the output, by
            default the same: 64, 80, 96, 128 or 256, or 192 and 128 (on a CPU any multiples of 8
            from 16).
        dtype: of q and the output: float16 or bfloat16 (on a CPU also float32).
        kv_data_type: of K and V: `dtype` (also if None), float8_e4m3fn or float8_e5m2.
        device: a CUDA device, or "cpu" with TRITON_INTERPRET=1.
        capacity: sizes of the buffers. By default they grow with the plans until ``run`` is
            captured in a CUDA graph; from then on a larger plan is refused.
        exact_weights: with fewer than four query rows per KV head, weigh the values as FlashInfer's
            decode does, whose softmax weights are fp32 there, at the price of a second product.
            False rounds them to 16 bits as FA3 does, and as larger groups always have them.
        config: launch configuration in place of the one for this GPU, with its `exact_weights`.

    Raises:
        ValueError: an unsupported shape or dtype.
    """

    def __init__(
        self,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        *,
        head_dim_vo: int | None = None,
        dtype: torch.dtype = torch.bfloat16,
        kv_data_type: torch.dtype | None = None,
        device: torch.device | str = "cuda",
        capacity: PlanCapacity | None = None,
        exact_weights: bool = True,
        config: LaunchConfig | None = None,
    ) -> None:
        # with the index, as tensors name it
        self.device = torch.empty(0, device=device).device
        self.dtype, self.kv_data_type = dtype, kv_data_type or dtype
        names = (str(each).removeprefix("torch.") for each in (dtype, self.kv_data_type))
        heads, dims = (num_qo_heads, num_kv_heads), (head_dim_qk, head_dim_vo or head_dim_qk)
        self.shape = AttentionShape(*heads, *dims, *names)
        if reason := why_unsupported(self.shape, interpreted=self.device.type != "cuda"):
            raise ValueError(f"PrefixSharedDecodeWrapper: {reason}")
        self._given_config, self._exact_weights = config, exact_weights
        self.launch_plan: Plan | None = None
        self.spec, self.config, self.cost_model = self._for(self.shape)
        make_ready()
        self._fixed = capacity is not None
        self._buffers = self._allocate(capacity, self.spec) if capacity is not None else None
        self._captured: CapturedLimits | None = None
        self._of_scores: dict[str, float] = {}  # of the plan, by the names of its arguments
        self._highest_slot = -1

    def plan(
        self,
        forest: PrefixForest,
        sm_scale: float | None = None,
        *,
        logits_soft_cap: float | None = None,
        window_left: int = -1,
        query_rows: int = 1,
        cut: Cut | None = None,
    ) -> Plan:
        """Plan a batch and upload the plan.

        Args:
            forest: from `PrefixForest.from_paths` or `PrefixForest.from_kv_indices`.
            sm_scale: factor of the scores; ``1 / sqrt(head_dim_qk)`` by default.
            logits_soft_cap: scaled scores are bent into (-cap, cap) by tanh; 0 or None for no cap.
            window_left: tokens before its newest one that a row sees; -1 for all of them.
            query_rows: `n` newest tokens of each row of the forest that attend, each to all up to
                itself; 1 to 16, with at most 64 query heads for each KV head together, and not with
                a window. A run that holds some of a row's ``n - 1`` newest tokens is not shared
                with it.
            cut: another way to cut and schedule the tasks, for comparisons.

        Returns:
            The plan, also at `launch_plan`.

        Raises:
            PlanCapacityError: the plan does not fit the buffers and they must not move.
            ValueError: a forest without slots or with negative ones, unsupported `query_rows`,
                another `sm_scale`, `logits_soft_cap`, `window_left` or `query_rows` than the
                captured one, or more rows or higher slots than a captured `run` has. The wrapper
                keeps the plan that it had.
        """
        scale = 1.0 / math.sqrt(self.shape.key_dim) if sm_scale is None else float(sm_scale)
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"sm_scale = {scale} must be a finite number greater than 0")
        cap = float(logits_soft_cap or 0.0)
        if not (math.isfinite(cap) and cap >= 0):
            raise ValueError(f"logits_soft_cap = {cap} must be a finite number, 0 for no cap")
        if window_left < -1:
            raise ValueError(f"window_left = {window_left} must be 0 or more, or -1 for no window")
        window = None if window_left < 0 else window_left
        shape = dataclasses.replace(self.shape, window=window, query_rows=query_rows)
        if reason := why_query_rows(shape, self.device.type != "cuda"):
            raise ValueError(f"query_rows: {reason}")
        of_scores = {"sm_scale": scale, "logits_soft_cap": cap, "window_left": window_left}
        of_scores["query_rows"] = query_rows
        for name, value in of_scores.items():
            if self._captured and value != self._of_scores[name]:
                raise ValueError(
                    f"{name} = {value}, but a CUDA graph was captured with "
                    f"{self._of_scores[name]}; capture again, or use another wrapper"
                )
        may_grow = not (self._fixed or self._captured)
        limits = _UNLIMITED if may_grow else self._buffers.capacity
        forest = forest.through_window(window_left + 1, query_rows=query_rows)
        spec, config, costs = self._for(shape)
        plan = Planner(spec, costs, limits, cut).make_plan(forest)
        kv_index = kv_index_of(forest, plan)
        highest = int(kv_index.max(initial=-1))
        if self._captured:
            self._captured.check(plan.batch * query_rows, highest)
        need = PlanCapacity(
            plan.batch, plan.num_tasks, plan.num_parts, plan.kv_entries, plan.bundle_entries
        )
        if may_grow and not _fits(need, self._buffers):
            self._buffers = self._allocate(_rounded_up(need), spec)
        elif self._buffers.query_rows != query_rows:
            self._buffers = self._allocate(self._buffers.capacity, spec)
        buffers = self._buffers
        buffers.window = plan.window
        buffers.upload(plan)
        if plan.window or query_rows > 1:
            buffers.row_lengths[: plan.batch].copy_(torch.from_numpy(plan.lengths))
        if len(kv_index):
            buffers.kv_index[: len(kv_index)].copy_(torch.from_numpy(kv_index), non_blocking=False)
        update_lengths(buffers)
        self._of_scores, self.spec = of_scores, spec
        self.config, self.cost_model = config, costs
        self._highest_slot = highest
        self.launch_plan = plan
        return plan

    def run(
        self,
        q: torch.Tensor,
        k_buffer: torch.Tensor,
        v_buffer: torch.Tensor,
        *,
        k_scale: float | None = None,
        v_scale: float | None = None,
        sinks: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
        return_lse: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Attend for one layer.

        Args:
            q: ``[B * query_rows, num_qo_heads, head_dim_qk]``, the query rows of a row of the
                forest one after another, the newest token's last. B may exceed the planned batch;
                the rows beyond it (padding) become zero with LSE -inf.
            k_buffer, v_buffer: ``[num_slots, num_kv_heads, head_dim_qk]`` and ``[..,
                head_dim_vo]``, or with pages ``[num_pages, page_size, num_kv_heads, ..]`` (a slot
                is ``page * page_size + offset``). The last dimension is contiguous.
            k_scale, v_scale: what K and V were divided by when they were stored; None for 1. A
                captured graph keeps them.
            sinks: ``[num_qo_heads]`` floats, for each query head a logit that takes part in the
                softmax and has no value; neither scaled nor capped. None for no sinks. A captured
                graph reads this tensor's memory again.
            out: ``[B * query_rows, num_qo_heads, head_dim_vo]``, other memory than q's; allocated
                if None. With several query rows its rows and heads lie back to back.
            return_lse: also return the log-sum-exp of the scaled and capped scores and the sink,
                fp32 ``[B * query_rows, num_qo_heads]``, in base 2 (as FlashInfer's): with it a
                result can be merged with that of other tokens without sinks. A row without tokens
                has -inf.

        Raises:
            RuntimeError: no plan yet. ValueError: a shape, dtype or device that does not match.
        """
        if self.launch_plan is None:
            raise RuntimeError("run() before plan(): call plan(forest) for this batch first")
        k_buffer, v_buffer = _without_pages(k_buffer), _without_pages(v_buffer)
        self._check(q, k_buffer, v_buffer, out)
        self._check_sinks(sinks)
        for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
            if scale is not None and not (math.isfinite(scale) and scale > 0):
                raise ValueError(f"{name} = {scale} must be a finite number greater than 0")
        if out is None:
            out = q.new_empty(self._out_shape(q))
        lse = q.new_empty(q.shape[:2], dtype=torch.float32) if return_lse else None
        prefix_shared_attention(
            q,
            k_buffer,
            v_buffer,
            out,
            self._buffers,
            sm_scale=self._of_scores["sm_scale"],
            config=self.config,
            lse=lse,
            sinks=sinks,
            soft_cap=self._of_scores["logits_soft_cap"] or None,
            k_scale=k_scale,
            v_scale=v_scale,
        )
        if _is_capturing(self.device):
            slots = min(len(k_buffer), len(v_buffer))
            self._captured = CapturedLimits(len(q), slots).within(self._captured)
        return (out, lse) if return_lse else out

    def _for(self, shape: AttentionShape) -> tuple[PlanSpec, LaunchConfig, CostModel]:
        """How layers of `shape` are planned and launched."""
        if self.launch_plan and shape.query_rows == self.spec.shape.query_rows:
            return dataclasses.replace(self.spec, shape=shape), self.config, self.cost_model
        everywhere = dataclasses.replace(shape, window=None)
        machine = describe_device(self.device, everywhere, exact_weights=self._exact_weights)
        if self._given_config:
            machine = dataclasses.replace(machine, config=self._given_config)
        spec = plan_spec(machine, shape)
        return spec, machine.config, cost_model(machine, spec)

    def _allocate(self, capacity: PlanCapacity, spec: PlanSpec) -> PlanBuffers:
        return PlanBuffers(PlanLayout.of(capacity, spec), spec.shape, self.device)

    def _out_shape(self, q: torch.Tensor) -> tuple[int, int, int]:
        return (*q.shape[:2], self.shape.value_dim)

    def _check_sinks(self, sinks: torch.Tensor | None) -> None:
        heads = self.shape.num_qo_heads
        if not are_sinks(sinks, heads):
            raise ValueError(
                f"sinks has shape {tuple(sinks.shape)}, strides {sinks.stride()} and dtype "
                f"{sinks.dtype}, expected [{heads}], contiguous, of floats"
            )
        if sinks is not None and sinks.device != self.device:
            raise ValueError(f"sinks is on {sinks.device}, the wrapper on {self.device}")

    def _check(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor | None
    ) -> None:
        shape = self.shape
        heads = (shape.num_qo_heads, shape.key_dim)
        if q.ndim != 3 or q.shape[1:] != heads:
            raise ValueError(f"q has shape {tuple(q.shape)}, expected [B, {heads[0]}, {heads[1]}]")
        if len(q) % self._buffers.query_rows:
            raise ValueError(
                f"q has {len(q)} rows, the plan {self._buffers.query_rows} query rows for each row "
                "of its forest; pass all of them"
            )
        for name, buffer, dim in (("k_buffer", k, shape.key_dim), ("v_buffer", v, shape.value_dim)):
            if buffer.ndim != 3 or buffer.shape[1:] != (shape.num_kv_heads, dim):
                raise ValueError(
                    f"{name} has shape {tuple(buffer.shape)}, expected [num_slots, "
                    f"{shape.num_kv_heads}, {dim}]"
                )
            if buffer.shape[0] <= self._highest_slot:
                raise ValueError(
                    f"{name} has {buffer.shape[0]} slots, but the plan uses slot "
                    f"{self._highest_slot}; pass the buffer that the slots were given out of"
                )
        tensors = {"q": q, "k_buffer": k, "v_buffer": v, "out": q if out is None else out}
        if out is not None and out.shape != self._out_shape(q):
            raise ValueError(f"out has shape {tuple(out.shape)}, expected {self._out_shape(q)}")
        if out is not None and out.numel() and out.data_ptr() == q.data_ptr():
            raise ValueError(
                "out is the memory of q, which is read after the first rows of out "
                "are written; pass another tensor"
            )
        if out is not None and 0 in out.stride():
            raise ValueError(
                f"out has strides {out.stride()}: its rows or heads are one memory; "
                "pass a tensor that was not expanded"
            )
        for name, tensor in tensors.items():
            dtype = self.kv_data_type if name.endswith("_buffer") else self.dtype
            if tensor.dtype != dtype:
                raise ValueError(f"{name} has dtype {tensor.dtype}, the wrapper {dtype}")
            if tensor.device != self.device:
                raise ValueError(f"{name} is on {tensor.device}, the wrapper on {self.device}")
            if tensor.stride(-1) != 1:
                raise ValueError(
                    f"{name} must be contiguous in its last dimension, its strides are "
                    f"{tensor.stride()}; pass {name}.contiguous()"
                )


_UNLIMITED = PlanCapacity(_MAX_SLOT, _MAX_SLOT, _MAX_SLOT, _MAX_SLOT)


def _fits(need: PlanCapacity, buffers: PlanBuffers | None) -> bool:
    if buffers is None:
        return False
    have = buffers.capacity
    return (
        need.rows <= have.rows
        and need.tasks <= have.tasks
        and need.parts <= have.parts
        and need.kv_index <= have.kv_index
        and need.bundle_index <= have.bundle_index
    )


def _rounded_up(need: PlanCapacity) -> PlanCapacity:
    def up(value: int, least: int) -> int:
        return max(least, 1 << (value - 1).bit_length() if value > 1 else 1)

    return PlanCapacity(
        up(need.rows, 64),
        up(need.tasks, 512),
        up(need.parts, 512),
        up(need.kv_index, 4096),
        up(need.bundle_index, 4096),
    )


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _without_pages(buffer: torch.Tensor) -> torch.Tensor:
    return buffer.flatten(0, 1) if buffer.ndim == 4 else buffer
