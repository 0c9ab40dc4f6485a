"""The operator one level below the public API: a plan with growing tails, in buffers of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sglang_codec import PrefixForest
from sglang_codec.attention import prefix_shared_attention, update_lengths
from sglang_codec.attention_shape import AttentionShape
from sglang_codec.buffers import PlanBuffers
from sglang_codec.device import cost_model, describe_device, plan_spec
from sglang_codec.kernels.kv_index import append_slots
from sglang_codec.kernels.launch import LaunchConfig
from sglang_codec.planning.cost_model import CostModel
from sglang_codec.planning.index import kv_index_of
from sglang_codec.planning.plan import Plan, PlanCapacity, PlanLayout, PlanSpec
from sglang_codec.planning.planner import make_plan as plan_forest
from sglang_codec.testing import (
    Paths,
    Problem,
    assert_lse_close,
    assert_within_low_precision_error,
    without_pages,
)

MOST_SMS = 8


@dataclass
class Planned:
    """A plan that has been uploaded."""

    plan: Plan
    buffers: PlanBuffers
    config: LaunchConfig

    def attend(self, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and LSE, in tensors that were NaN before."""
        out = problem.empty()
        lse = torch.full(out.shape[:2], float("nan"), device=out.device)
        update_lengths(self.buffers)
        prefix_shared_attention(
            problem.q,
            without_pages(problem.k_buffer),
            without_pages(problem.v_buffer),
            out,
            self.buffers,
            sm_scale=problem.sm_scale,
            config=self.config,
            lse=lse,
            **problem.of_layer,
        )
        return out, lse

    def check(self, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
        """`attend`, and compare with fp64."""
        out, lse = self.attend(problem)
        exact, exact_lse = problem.exact()
        assert_within_low_precision_error(out, exact, problem.eager())
        assert_lse_close(lse, exact_lse)
        return out, lse

    def check_closely(self, problem: Problem) -> None:
        """`check`, but in fp32 so closely that one token more or less shows."""
        if problem.q.dtype != torch.float32:
            self.check(problem)
            return
        out, lse = self.attend(problem)
        exact, exact_lse = problem.exact()
        torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=1e-5)
        assert_lse_close(lse, exact_lse)

    def append(self, lengths: torch.Tensor, slots: torch.Tensor) -> None:
        """Where the newest tokens of each row lie, of each query row one, and its length."""
        append_slots(
            self.buffers.kv_index,
            self.buffers.row_lengths,
            self.buffers.plan,
            lengths,
            slots,
            append_base_offset=self.buffers.layout.append_base,
            windowed=self.buffers.window > 0,
            query_rows=self.buffers.query_rows,
        )


def verified(
    rows: Sequence[torch.Tensor], kept: Sequence[int], drafts: torch.Tensor
) -> list[torch.Tensor]:
    """KV slots of rows that end in drafts: with as many of them as were kept, and new ones.

    Args:
        drafts: ``[B, n]`` KV slots.
    """
    return [
        torch.cat([row[: len(row) - len(new) + count], new])
        for row, count, new in zip(rows, kept, drafts, strict=True)
    ]


def unused_slot(problem: Problem) -> int:
    """A slot of the cache that no row uses: it holds NaN."""
    return len(without_pages(problem.k_buffer)) - 1


def plan_batch(
    paths: Paths,
    problem: Problem,
    *,
    tail_headroom: int = 0,
    spare_rows: int = 0,
    config: LaunchConfig | None = None,
    make_plan: Callable[[PrefixForest, PlanSpec, CostModel], Plan] | None = None,
) -> Planned:
    """Plan `paths` for the tensors of `problem`, in buffers that just hold the plan.

    Args:
        config: launch configuration in place of the device's.
        make_plan: another planner than the one that serves.
    """
    device, num_kv_heads = problem.q.device, problem.k_buffer.shape[-2]
    _, num_qo_heads, key_dim = problem.q.shape
    dims = (key_dim, problem.v_buffer.shape[-1])
    dtypes = (str(tensor.dtype).removeprefix("torch.") for tensor in (problem.q, problem.k_buffer))
    shape = AttentionShape(num_qo_heads, num_kv_heads, *dims, *dtypes)
    window = problem.window - 1 if problem.window else None
    shape = dataclasses.replace(shape, window=window, query_rows=problem.query_rows)
    machine = describe_device(device, shape)
    # on a whole GPU every task of a small batch has a program for itself, and no bundle pays
    machine = dataclasses.replace(
        machine, num_sms=min(machine.num_sms, MOST_SMS), config=config or machine.config
    )
    spec = plan_spec(machine, shape, tail_headroom=tail_headroom)
    forest = PrefixForest.from_paths(paths)
    forest = forest.through_window(problem.window, query_rows=problem.query_rows)
    costs = cost_model(machine, spec)
    if make_plan is None:
        unlimited = PlanCapacity(1 << 30, 1 << 30, 1 << 30, 1 << 30)
        plan = plan_forest(forest, spec, costs, unlimited)
    else:
        plan = make_plan(forest, spec, costs)
    capacity = PlanCapacity(
        plan.batch + spare_rows,
        plan.num_tasks,
        plan.num_parts,
        plan.kv_entries,
        plan.bundle_entries,
    )
    layout = PlanLayout.of(capacity, spec)
    buffers = PlanBuffers(layout, shape, device)
    buffers.upload(plan)
    buffers.bundle_index.fill_(unused_slot(problem))
    # entries that nobody has filled yet name a slot that holds NaN
    buffers.kv_index.fill_(unused_slot(problem))
    index = torch.from_numpy(kv_index_of(forest, plan).copy())
    for _, _, tokens, entry in plan.spans.tolist():
        buffers.kv_index[entry : entry + tokens] = index[entry : entry + tokens].to(device)
    buffers.row_lengths[: plan.batch] = torch.from_numpy(plan.lengths).to(device)
    return Planned(plan, buffers, machine.config)
