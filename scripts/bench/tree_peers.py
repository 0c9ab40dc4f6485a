"""Prefix-aware kernels; each is told the tree."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

import numpy as np
import torch

from bench.problem import Problem, Tree
from bench.runner import Runner, Unsupported
from bench.stock_peers import paged, workspace
from bench.timing import time_host


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
            kv_data_type=problem.dtype,
        )

    plan()
    notes: dict[str, object] = {"cascade_plan_ms": time_host(plan, 3, problem.device)}
    order = problem.tensor(problem.tree.dfs_order, torch.int64)
    q = problem.q[order].contiguous()

    def run(layer: int) -> torch.Tensor:
        return wrapper.run(q, paged(problem, layer))

    return [Runner(run, position=order.argsort(), notes=notes)]


# query tiles of FastTree's two phases by heads per KV head, as its own benchmark sets them
FASTTREE_TILES = {1: (64, 16), 4: (16, 4), 16: (4, 1)}


@dataclass
class FastTreeNode:
    """A tree node under the attribute names that FastTree's planner reads."""

    parent: int
    id: int
    seqlen: int
    num_children: int
    requests: list[int]


def fasttree_nodes(tree: Tree) -> list[FastTreeNode]:
    children = np.zeros(len(tree.parents), np.int64)
    for parent in tree.parents:
        if parent >= 0:
            children[parent] += 1
    return [
        FastTreeNode(parent, node, tree.lengths[node], int(children[node]), tree.readers[node])
        for node, parent in enumerate(tree.parents)
    ]


def fasttree(problem: Problem) -> list[Runner]:
    """FastTree's kernels and planner, from its own `fasttree.py` on the path."""
    tree, group = problem.tree, problem.num_qo_heads // problem.num_kv_heads
    if tree.parents.count(-1) != 1:
        raise Unsupported("several roots")
    if group not in FASTTREE_TILES:
        raise Unsupported(f"{group} query heads per KV head")
    import fasttree as library

    pointers = [0, *np.cumsum(tree.lengths).tolist()]

    def prepare(_: int = 0) -> tuple:
        parameters = library.FastTreeParams()
        parameters.set_values(0.66, 0.33, 0.1)
        parameters.set_q_tile_sizes(list(FASTTREE_TILES[group]))
        parameters.set_kv_tile_sizes([32, 32])
        parameters.set_kv_group_num(group)
        nodes = fasttree_nodes(tree)
        for node in nodes:
            node.requests = list(node.requests)
        with contextlib.redirect_stdout(io.StringIO()):
            auxiliary, _ = library.fasttree_preparation(
                nodes,
                pointers,
                problem.batch,
                problem.num_qo_heads,
                problem.num_kv_heads,
                problem.head_dim,
                [1024, 128],
                [132, 528],
                [132, 132],
                parameters,
            )
        return auxiliary, parameters

    notes: dict[str, object] = {"fasttree_plan_ms": time_host(prepare, 1, problem.device)}
    auxiliary, parameters = prepare()
    # its KV entries count tokens of the nodes back to back: turn them into this problem's slots
    slots = problem.tensor(np.concatenate(problem.node_slots))
    entries = auxiliary[0]
    entries = torch.where(entries >= 0, slots[entries.clamp(min=0).long()], entries)
    auxiliary = (entries, *auxiliary[1:])
    out = torch.empty_like(problem.q)

    def run(layer: int) -> torch.Tensor:
        library.fasttree_decode(
            problem.q,
            problem.k[layer],
            problem.v[layer],
            out,
            *auxiliary,
            parameters.TSQs,
            parameters.TSKs,
            problem.sm_scale,
        )
        return out

    return [Runner(run, notes=notes)]
