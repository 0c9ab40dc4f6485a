"""The kernels under comparison, by name: each adapter turns a problem into a call per layer.

Adapters import their library when called, so that a peer which is not installed costs nothing; any
exception becomes the peer's recorded reason. An adapter may return several variants of one library
(with and without tensor cores, say): the fastest correct one stands for the peer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from library.attention import stock_peers
from library.attention.fasttree_peer import fasttree
from library.attention.pat_peer import pat
from library.attention.problem import Problem
from library.attention.runner import Adapter, Runner
from library.attention.timing import Run, time_host
from library.attention.tree_peers import cascade

if TYPE_CHECKING:
    from sglang_codec import PrefixForest, PrefixSharedDecodeWrapper

STOCK = ("flashinfer", "fa3", "triton")
PREFIX_AWARE = ("cascade", "fasttree", "pat")
WITH_SINKS = ("codec", "fa3", "triton")  # FlashInfer compiles a kernel of its own for them
WITH_QUERY_ROWS = ("codec", "eager", "flashinfer", "fa3")
DEFAULT = ("codec", "flashinfer", "fa3", "triton", "cascade", "fasttree", "pat")
PAGES = {"pat": 32}  # slots; for contiguous nodes
PLAN_REPEATS = 6


def wrapper_of(problem: Problem, **options: Any) -> PrefixSharedDecodeWrapper:
    """Our wrapper for a problem's shape."""
    from sglang_codec import PrefixSharedDecodeWrapper

    heads = (problem.num_qo_heads, problem.num_kv_heads, problem.head_dim)
    dtypes = {"dtype": problem.dtype, "kv_data_type": problem.kv_dtype}
    where = {"head_dim_vo": problem.value_dim, "device": problem.device} | dtypes
    return PrefixSharedDecodeWrapper(*heads, **where, **options)


def plan_of(wrapper: PrefixSharedDecodeWrapper, problem: Problem, forest: PrefixForest) -> None:
    """Plan a forest as the problem's layers see it."""
    of_layer = {"window_left": problem.window - 1, "query_rows": problem.query_rows}
    wrapper.plan(forest, sm_scale=problem.sm_scale, **of_layer)


def call_of(wrapper: PrefixSharedDecodeWrapper, problem: Problem) -> Run:
    """The planned wrapper's attention of one layer, over an output that was NaN."""
    out = problem.empty()
    given = {"out": out, "sinks": problem.sinks}
    return lambda layer: wrapper.run(problem.q, problem.k[layer], problem.v[layer], **given)


def codec(problem: Problem) -> list[Runner]:
    from sglang_codec import PrefixForest

    wrapper = wrapper_of(problem)

    def plan(forest: PrefixForest) -> None:
        plan_of(wrapper, problem, forest)

    # a forest has to be planned anew only where it differs from the last one: turn the batch
    paths, device = problem.paths, problem.device
    turned = [paths[i % problem.batch :] + paths[: i % problem.batch] for i in range(3)]
    forests = [PrefixForest.from_paths(turned[i % 3]) for i in range(PLAN_REPEATS)]
    plan(forests[-1])  # buffers are allocated here
    notes: dict[str, object] = {
        "plan_ms": time_host(lambda i: plan(forests[i]), PLAN_REPEATS, device),
        "forest_ms": time_host(lambda i: PrefixForest.from_paths(turned[i % 3]), 5, device),
    }
    plan(forest := PrefixForest.from_paths(paths))
    notes["replan_ms"] = time_host(lambda i: plan(forest), PLAN_REPEATS, device)
    notes["host_plan_ms"] = _host_plan_ms(wrapper, forests)
    notes["plan"] = dict(wrapper.launch_plan.summary())
    return [Runner(call_of(wrapper, problem), notes=notes)]


def _host_plan_ms(wrapper: PrefixSharedDecodeWrapper, forests: list[PrefixForest]) -> float:
    """Planning alone: no upload, no device."""
    from sglang_codec.planning.plan import PlanCapacity
    from sglang_codec.planning.planner import Planner

    unlimited = PlanCapacity(*[2**31 - 1] * 4)
    make_plan = Planner(wrapper.spec, wrapper.cost_model, unlimited).make_plan

    def plan(i: int) -> None:
        shape = wrapper.spec.shape
        make_plan(forests[i].through_window(shape.seen_tokens, query_rows=shape.query_rows))

    return time_host(plan, len(forests), torch.device("cpu"))


def eager(problem: Problem) -> list[Runner]:
    """Plain PyTorch over gathered KV: for tests of the benchmark, and as a sanity check."""
    rows = range(len(problem.q))
    slots = [problem.tensor(problem.slots_of_row(row), torch.int64) for row in rows]
    group = problem.num_qo_heads // problem.num_kv_heads

    def run(layer: int) -> torch.Tensor:
        out = []
        for row, index in enumerate(slots):
            k = problem.k[layer][index].float().repeat_interleave(group, 1).transpose(0, 1)
            v = problem.v[layer][index].float().repeat_interleave(group, 1).transpose(0, 1)
            scores = k @ problem.q[row].float().unsqueeze(-1) * problem.sm_scale
            out.append((scores.transpose(1, 2).softmax(-1) @ v).squeeze(1))
        return torch.stack(out).to(problem.dtype)

    return [Runner(run)]


ADAPTERS: dict[str, Adapter] = {
    "codec": codec,
    "eager": eager,
    "flashinfer": stock_peers.flashinfer,
    "fa3": stock_peers.fa3,
    "triton": stock_peers.sglang_triton,
    "cascade": cascade,
    "fasttree": fasttree,
    "pat": pat,
}
