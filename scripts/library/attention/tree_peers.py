"""FlashInfer's cascade, which is told the tree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from library.attention.problem import Problem, Tree
from library.attention.runner import Runner, Unsupported
from library.attention.stock_peers import paged, refuse_unequal_dims, workspace
from library.attention.timing import time_host


@dataclass(frozen=True)
class Level:
    """One level of a cascade: which adjacent queries read which slots."""

    qo_indptr: list[int]
    kv_indptr: list[int]
    slots: list[np.ndarray]


def cascade_levels(tree: Tree, node_slots: list[np.ndarray]) -> list[Level]:
    """Levels of a tree whose requests are taken in depth-first order."""
    depths = {len(path) for path in tree.paths}
    if len(depths) > 1:
        raise Unsupported("paths of different depth")
    if depths == {1}:
        raise Unsupported("nothing is shared")
    levels = []
    for depth in range(depths.pop()):
        level, previous = Level([0], [0], []), -1
        for request in tree.dfs_order:
            node = tree.paths[request][depth]
            if node == previous:
                level.qo_indptr[-1] += 1
            else:
                level.qo_indptr.append(level.qo_indptr[-1] + 1)
                level.kv_indptr.append(level.kv_indptr[-1] + len(node_slots[node]))
                level.slots.append(node_slots[node])
            previous = node
        levels.append(level)
    return levels


def cascade(problem: Problem) -> list[Runner]:
    """FlashInfer's multi-level cascade; its queries lie in depth-first order, sorted beforehand."""
    refuse_unequal_dims(problem)
    levels = cascade_levels(problem.tree, problem.node_slots)
    from flashinfer import MultiLevelCascadeAttentionWrapper

    wrapper = MultiLevelCascadeAttentionWrapper(len(levels), workspace(problem.device), "NHD")

    def plan(_: int = 0) -> None:
        wrapper.plan(
            [problem.tensor(level.qo_indptr) for level in levels],
            [problem.tensor(level.kv_indptr) for level in levels],
            [problem.tensor(np.concatenate(level.slots)) for level in levels],
            [problem.tensor([1] * len(level.slots)) for level in levels],
            problem.num_qo_heads,
            problem.num_kv_heads,
            problem.head_dim,
            1,
            sm_scale=problem.sm_scale,
            q_data_type=problem.dtype,
            kv_data_type=problem.kv_dtype,
        )

    plan()
    notes: dict[str, object] = {"cascade_plan_ms": time_host(plan, 3, problem.device)}
    order = problem.tensor(problem.tree.dfs_order, torch.int64)
    q = problem.q[order].contiguous()

    def run(layer: int) -> torch.Tensor:
        return wrapper.run(q, paged(problem, layer))

    return [Runner(run, position=order.argsort(), notes=notes)]
