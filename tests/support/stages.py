"""The stages of the planner one by one, uncompiled, with what they read in tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sglang_codec.planning.cost_model import CostModel
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.inputs import forest_arrays, machine_table
from sglang_codec.planning.plan import PlanCapacity, PlanSpec
from sglang_codec.planning.structure import Forest
from sglang_codec.planning.tables import ITEM, NODE, TASK

UNLIMITED = PlanCapacity(1 << 30, 1 << 30, 1 << 30, 1 << 30)


def machine_of(spec: PlanSpec, cost_model: CostModel) -> np.record:
    """What the stages know of a machine whose buffers hold every plan."""
    return machine_table(spec, cost_model, UNLIMITED)[0]


def tables_of(forest: PrefixForest) -> Forest:
    """A forest as the stages read it."""
    order, nodes = forest_arrays(forest)
    return Forest(order, nodes.view(NODE), forest.num_shared)


def items_of(items: Sequence[tuple[int, int]], spec: PlanSpec, cost_model: CostModel) -> np.ndarray:
    """A table of `ITEM` from ``(rows of the query tile, KV tokens)``, each of a run of its own."""
    table = np.zeros(len(items), ITEM)
    for i, (rows, tokens) in enumerate(items):
        table[i].run = i
        table[i].queries = 1
        table[i].tile = spec.row_tiles.index(rows)
        table[i].tokens = tokens
        table[i].share = 1.0
        table[i].us = cost_model.task_us(np.array([rows]), np.array([tokens]))[0]
    return table


def tasks_of(us: np.ndarray) -> np.ndarray:
    """A table of `TASK` of which only the microseconds matter."""
    table = np.zeros(len(us), TASK)
    table["us"] = us
    return table
