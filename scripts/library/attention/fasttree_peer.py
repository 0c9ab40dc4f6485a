"""FastTree's kernels and planner, from its own `fasttree.py` on PYTHONPATH.

The calls and constants are those of FastTree's kernel benchmark: a tile takes 64 or 16 rows
(requests x query heads per KV head), 32 tokens a step, tasks of 1024 tokens or, where those are too
few, 128. It sets the row tiles for 1, 4 and 16 query heads per KV head; 2 and 8 follow the same
rule here.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from library.attention.problem import Problem, Tree
from library.attention.runner import Runner, Unsupported
from library.attention.stock_peers import refuse_unequal_dims
from library.attention.timing import time_host

TILE_ROWS = (64, 16)
TILE_TOKENS = (32, 32)
SPLIT_TOKENS = (1024, 128)
ENOUGH_TASKS = ((132, 528), (132, 132))
COST_WEIGHTS = (0.66, 0.33, 0.1)
INT32_ELEMENTS = 2**31  # its kernel multiplies a slot and a stride in the slots' own type


@dataclass
class FastTreeNode:
    """A tree node under the attribute names that FastTree's planner reads."""

    parent: int
    id: int
    seqlen: int
    num_children: int
    requests: list[int]


def fasttree_nodes(tree: Tree) -> list[FastTreeNode]:
    """The tree in FastTree's terms: one root, first in the list.

    A forest gets a root without tokens, which its planner merges into the trees below.
    """
    parents, lengths, readers = tree.parents, tree.lengths, tree.readers
    if parents.count(-1) != 1:
        parents = [-1, *(parent + 1 for parent in parents)]
        lengths, readers = [0, *lengths], [list(range(len(tree.paths))), *readers]
    children = np.bincount([parent + 1 for parent in parents], minlength=len(parents) + 1)[1:]
    return [
        FastTreeNode(parent, node, lengths[node], int(children[node]), list(readers[node]))
        for node, parent in enumerate(parents)
    ]


def fasttree(problem: Problem) -> list[Runner]:
    """FastTree's plan and kernels on this problem's own slots."""
    refuse_unequal_dims(problem)
    group = problem.num_qo_heads // problem.num_kv_heads
    if problem.kv_dtype != problem.dtype:
        raise Unsupported(f"a KV cache in {problem.kv_dtype}")
    if TILE_ROWS[-1] % group:
        raise Unsupported(f"{group} query heads per KV head do not fill a tile of {TILE_ROWS[-1]}")
    import fasttree as library

    several_roots = problem.tree.parents.count(-1) > 1
    prepared: list[tuple] = []
    plan_ms = time_host(lambda _: prepared.append(_prepare(library, problem)), 1, problem.device)
    auxiliary, parameters = prepared[0]
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

    variant = "empty root" if several_roots else ""
    return [Runner(run, variant, notes={"fasttree_plan_ms": plan_ms})]


def _prepare(library: ModuleType, problem: Problem) -> tuple[tuple, object]:
    """FastTree's device tensors, KV entries as slots, and its parameters, which planning changes.

    The tile sizes in the parameters are those that the plan was made for; the lists that were put
    in are not.
    """
    group = problem.num_qo_heads // problem.num_kv_heads
    parameters = library.FastTreeParams()
    parameters.set_values(*COST_WEIGHTS)
    parameters.set_q_tile_sizes([rows // group for rows in TILE_ROWS])
    parameters.set_kv_tile_sizes(list(TILE_TOKENS))
    parameters.set_kv_group_num(group)
    nodes = fasttree_nodes(problem.tree)
    pointers = [0, *np.cumsum([node.seqlen for node in nodes]).tolist()]
    with contextlib.redirect_stdout(io.StringIO()):
        auxiliary, _ = library.fasttree_preparation(
            nodes,
            pointers,
            problem.batch,
            problem.num_qo_heads,
            problem.num_kv_heads,
            problem.head_dim,
            list(SPLIT_TOKENS),
            *map(list, ENOUGH_TASKS),
            parameters,
        )
    # its KV entries count tokens of the nodes back to back: turn them into this problem's slots
    entries = auxiliary[0]
    wide = problem.num_slots * problem.num_kv_heads * problem.head_dim >= INT32_ELEMENTS
    slots = problem.tensor(np.concatenate(problem.node_slots), torch.int64 if wide else torch.int32)
    entries = torch.where(entries >= 0, slots[entries.clamp(min=0).long()], entries.to(slots.dtype))
    return (entries, *auxiliary[1:]), parameters
