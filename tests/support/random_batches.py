"""Batches, machines and buffers drawn from a seed: every kind of tree, sizes by their logarithm."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sglang_codec.attention_shape import AttentionShape
from sglang_codec.planning.cost_model import COST_TABLES, CostModel, roofline_cost_model
from sglang_codec.planning.paths import RadixPaths
from sglang_codec.planning.plan import PlanSpec

MOST_ROWS, MOST_TOKENS = 1024, 300_000
ROW_TILES = ((16,), (32,), (16, 64), (64, 128), (16, 32, 64), (16, 64, 128))
MEASURED = next(COST_TABLES.glob("*.json"))

Rng = np.random.Generator
# (nodes, random numbers) -> parent of each, which comes before it
Tree = Callable[[int, Rng], np.ndarray]


def lopsided(nodes: int, _: Rng) -> np.ndarray:
    """Chains of chains: a path of every length leaves every path."""
    node = np.arange(nodes)
    return np.where(node % 7 == 3, node // 2, node - 1)


def caterpillar(nodes: int, rng: Rng) -> np.ndarray:
    """A chain whose nodes have some leaves each."""
    node, legs = np.arange(nodes), int(rng.integers(2, 40))
    return np.where(node % legs == 0, node - legs, node - node % legs).clip(-1)


TREES: dict[str, Tree] = {
    "nothing shared": lambda nodes, rng: np.zeros(0, np.int64),
    "equal prompts": lambda nodes, rng: np.full(1, -1),
    "star": lambda nodes, rng: np.minimum(np.arange(nodes), 1) - 1,
    "roots": lambda nodes, rng: np.full(nodes, -1),
    "chain": lambda nodes, rng: np.arange(nodes) - 1,
    "comb": lambda nodes, rng: (np.arange(nodes) - 2 + np.arange(nodes) % 2).clip(-1),
    "caterpillar": caterpillar,
    "binary": lambda nodes, rng: (np.arange(nodes) + 1) // 2 - 1,
    "lopsided": lopsided,
    "random": lambda nodes, rng: rng.integers(-1, np.arange(nodes)),
    "groups": lambda nodes, rng: rng.integers(-1, np.minimum(np.arange(nodes), 9)),
}


@dataclass(frozen=True, slots=True)
class RandomBatch:
    """A batch, as a tree reader gives it, and the machine that it is planned for."""

    tree: str
    paths: RadixPaths
    lengths: np.ndarray
    spec: PlanSpec
    costs: CostModel


def log_uniform(rng: Rng, low: int, high: int, size: int | None = None) -> np.ndarray:
    """Integers of ``[low, high]``, `low` at least 1, small ones as likely as large ones."""
    drawn = np.exp(rng.uniform(math.log(low), math.log(high + 1), size))
    return np.asarray(drawn).astype(np.int64).clip(low, high)


def random_batch(rng: Rng) -> RandomBatch:
    """Draw everything that a planner is given, but the sizes of the buffers."""
    tree = str(rng.choice(list(TREES)))
    rows = int(log_uniform(rng, 1, MOST_ROWS)) if rng.random() > 0.01 else 0
    spec = random_spec(rng)
    return RandomBatch(tree, *random_rows(rng, tree, rows), spec, random_costs(rng, spec))


def random_rows(rng: Rng, tree: str, rows: int) -> tuple[RadixPaths, np.ndarray]:
    """Radix paths of `rows` rows over a kind of tree, and the rows' lengths."""
    # some rows of few and long prompts: what many slots share, cut at the same tokens for all tiles
    is_long = rng.random() < 0.3
    rows = min(rows, 100) if is_long else rows
    most_nodes = 4 if is_long else max(2 * rows, 1)
    parent = _shuffled(TREES[tree](int(log_uniform(rng, 1, most_nodes)), rng), rng)
    nodes, longest = len(parent), _longest(rng, 8000 if is_long else 30)
    short, long = log_uniform(rng, 1, 8, nodes), log_uniform(rng, 1, longest, nodes)
    tokens = np.where(rng.random(nodes) < rng.random(), short, longest if is_long else long)
    leaf = rng.integers(-1 if rng.random() < 0.3 else 0, max(nodes, 1), rows).clip(-1, nodes - 1)
    if rng.random() < 0.3:  # a row at each node while there are rows
        leaf[: min(nodes, rows)] = rng.permutation(nodes)[:rows]
    own = log_uniform(rng, 1, _longest(rng, 1), rows)
    # rows that end before their leaf does, by their one private token or by many
    own = np.where(rng.random(rows) < rng.choice((0, 0, 0.1, 0.6)), -own // 4, own)

    def lengths_of(shrink: float) -> tuple[np.ndarray, np.ndarray]:
        end = np.zeros(nodes + 1, np.int64)  # the last: of no node
        for node, above in enumerate(parent.tolist()):
            end[node] = end[above] + max(int(tokens[node] / shrink), 1)
        return end[:-1], np.maximum(end[leaf] + (own / shrink).astype(np.int64), 1)

    most = MOST_TOKENS if is_long else int(log_uniform(rng, 1000, MOST_TOKENS))
    end, lengths = lengths_of(1.0)
    end, lengths = lengths_of(max(1.0, lengths.sum() / most))
    few = rng.choice((0, 0, 0, 0.05, 0.5))
    lengths[rng.random(rows) < few] = 1
    lengths[rng.random(rows) < few / 2] = 0
    arrays = (array.astype(np.int32) for array in (parent, end, leaf))
    return RadixPaths(*arrays), lengths.astype(np.int32)


def random_spec(rng: Rng) -> PlanSpec:
    """A machine and an attention shape, or what no machine has."""
    row_tiles = ROW_TILES[rng.integers(len(ROW_TILES))]
    shape = AttentionShape.plain(
        8 * int(rng.choice((1, 2, 3, 4, 4, 5, 7, 8, 16))),
        8,
        int(rng.choice((64, 128, 256))),
        str(rng.choice(("float8_e4m3fn", "bfloat16", "float32"))),
    )
    window = int(log_uniform(rng, 1, 5000)) - 1 if rng.random() < 0.4 else None
    query_rows = int(rng.choice((1, 2, 3, 5, 8))) if window is None and rng.random() < 0.4 else 1
    query_rows = min(query_rows, max(row_tiles[-1] // shape.group, 1))
    shape = dataclasses.replace(shape, window=window, query_rows=query_rows)
    return PlanSpec(
        shape,
        row_tiles=row_tiles,
        block_kv=int(rng.choice((16, 32, 64, 128))),
        num_slots=int(log_uniform(rng, 1, 132)),
        tail_headroom=int(rng.choice((0, 1, 7, 128))),
        bundle_rows=int(rng.choice((0, 32, 64, 64))),
        l2_tokens=float(rng.choice((0.0, 1e5, 1e9))),
    )


def random_costs(rng: Rng, spec: PlanSpec) -> CostModel:
    """The measured table of a GPU, or one with any start-up of a task."""
    if rng.random() < 0.4:
        return CostModel.from_json(MEASURED, spec.shape.request_rows)
    return roofline_cost_model(
        spec.shape,
        num_ctas=264,
        bandwidth=3e12,
        flops=8e14,
        task_overhead_us=float(rng.choice((0.1, 2.0, 6.0, 50.0))),
    )


def _longest(rng: Rng, least: int) -> int:
    return int(log_uniform(rng, least, 20_000))


def _shuffled(parent: np.ndarray, rng: Rng) -> np.ndarray:
    """The same tree with its nodes in another order, parents still before children."""
    key = rng.random(len(parent))
    for node, above in enumerate(parent.tolist()):
        if above >= 0:
            key[node] += key[above]
    order = np.argsort(key)
    number = np.empty(len(parent) + 1, np.int64)
    number[order], number[-1] = np.arange(len(parent)), -1
    return number[parent][order]
