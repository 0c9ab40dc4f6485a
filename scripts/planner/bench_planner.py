#!/usr/bin/env python3
"""Time the planner on one core, and compare the plans that it predicts with an earlier run's.

    python scripts/planner/bench_planner.py --against docs/results/kernels_h100.json --json OUT

Needs no GPU: the forests of the public tables are planned with the shipped H100 cost table, on the
program slots that an H100 has. `changed` are batches as a server sees them: radix paths and lengths
that all differ, tails with headroom, forest included. Packing stands apart, and both are timed once
more after other work has emptied the core's caches, as a server's does between two plans.
`unchanged` is a step in which every row is a token longer and nothing else happened.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from library import results
from library.attention import tables

from sglang_codec.attention_shape import AttentionShape
from sglang_codec.batch_planner import BatchPlanner
from sglang_codec.device import Device, plan_spec
from sglang_codec.kernels.launch import launch_config
from sglang_codec.plan_maker import PlanMaker
from sglang_codec.planning.cost_model import COST_TABLES, CostModel
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.paths import RadixPaths
from sglang_codec.planning.plan import PlanCapacity, PlanLayout, PlanSpec
from sglang_codec.planning.planner import Planner, make_plan
from sglang_codec.row_lengths import RowLengths

# the ceilings are for a GPU without a cost table
H100 = Device(
    "H100",
    launch_config((9, 0), AttentionShape.plain(32, 8, tables.HEAD_DIM)),
    num_sms=132,
    bandwidth=0.0,
    flops=0.0,
    l2_bytes=50 * 2**20,
)
UNLIMITED = PlanCapacity(*[2**31 - 1] * 4)
CHANGED = (
    "1_8192",
    "1,64_8192,256",
    "1,4,16,256_2048,512,256,64",
    "1,16,32,64,128,1024_256,128,64,32,32,32",
)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", type=Path, help="JSON of bench_kernels.py, for its plans")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    return parser


def radix_paths(row: tables.Row, *, tails: bool) -> tuple[RadixPaths, np.ndarray]:
    """Paths and lengths of a row, shuffled; with `tails` the last level is not in the tree."""
    parents, lengths, leaves = row.level_tree()
    skipped = set(leaves) if tails else set()
    parent: list[int] = []
    end: list[int] = []
    index: dict[int, int] = {-1: -1}
    reach: dict[int, int] = {-1: 0}
    for node, (above, length) in enumerate(zip(parents, lengths, strict=True)):
        reach[node] = reach[above] + length
        index[node] = index[above]
        if length and node not in skipped:
            index[node] = len(parent)
            parent.append(index[above])
            end.append(reach[node])
    order = np.random.default_rng(0).permutation(leaves)
    leaf = np.array([index[node] for node in order], np.int32)
    row_lengths = np.array([reach[node] for node in order], np.int32)
    return RadixPaths(np.array(parent, np.int32), np.array(end, np.int32), leaf), row_lengths


def spec_of(row: tables.Row, headroom: int = 0) -> PlanSpec:
    """What the planner knows of an H100 and this row's heads."""
    return plan_spec(H100, shape_of(row), tail_headroom=headroom)


def shape_of(row: tables.Row) -> AttentionShape:
    """The tables' heads in bfloat16."""
    return AttentionShape.plain(row.num_qo_heads, row.num_kv_heads, tables.HEAD_DIM)


def cost_of(spec: PlanSpec) -> CostModel:
    """The shipped table of an H100."""
    table = COST_TABLES / "nvidia_h100_80gb_hbm3_d128.json"
    return CostModel.from_json(table, spec.shape.request_rows)


def median_ms(
    call: Callable[[], object], repeats: int, between: Callable[[], object] | None = None
) -> float:
    times = []
    for _ in range(repeats):
        if between is not None:
            between()
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


class OtherWork:
    """Work between two plans that leaves neither data nor code of the planner in the caches."""

    def __init__(self) -> None:
        self._memory = np.zeros(2**26, np.uint8)

    def __call__(self) -> None:
        self._memory[::64] += 1
        sorted(str(number) for number in range(20_000))
        np.linalg.svd(self._memory[:4096].reshape(64, 64).astype(np.float64))


def layout_for(
    spec: PlanSpec, paths: RadixPaths, lengths: np.ndarray, planner: Planner
) -> PlanLayout:
    """Buffers that the batch fits, with as many rows again."""
    made = planner.make_plan(PrefixForest.from_radix_paths(paths, lengths, private_tokens=1))
    sizes = (made.batch, made.num_tasks, made.num_parts, made.kv_entries, made.bundle_entries)
    return PlanLayout.of(PlanCapacity(*(2 * size + 64 for size in sizes)), spec)


def changed_batch(tree: str, repeats: int) -> dict[str, object]:
    """Milliseconds from radix paths to a packed plan: in one call, and stage by stage."""
    row = tables.Row("changed", tree, "32/8", *tables.parse_tree(tree))
    paths, lengths = radix_paths(row, tails=True)
    lengths = lengths + np.random.default_rng(1).integers(0, 200, len(lengths), np.int32)
    spec = spec_of(row, headroom=128)
    cost = cost_of(spec)
    layout = layout_for(spec, paths, lengths, Planner(spec, cost, UNLIMITED))
    planner = Planner(spec, cost, layout.capacity)
    packed, work = np.zeros(layout.size, np.int32), OtherWork()

    def at_once() -> None:
        planner.pack_paths(paths, lengths, layout, packed)

    def in_stages() -> None:
        forest = PrefixForest.from_radix_paths(paths, lengths, private_tokens=1)
        layout.pack(planner.make_plan(forest), packed)

    return {
        "tree": tree,
        "batch": row.batch,
        "plan_ms": round(median_ms(at_once, repeats), 3),
        "cold_plan_ms": round(median_ms(at_once, repeats, work), 3),
        "stages_ms": round(median_ms(in_stages, repeats), 3),
        "cold_stages_ms": round(median_ms(in_stages, repeats, work), 3),
        "unchanged_us": round(unchanged_us(row, paths, lengths, cost), 1),
    }


@dataclass(frozen=True)
class Batch:
    """What a decode batch carries to the planner, without an SGLang behind it."""

    signature: Hashable
    paths: RadixPaths

    def read(self) -> RadixPaths:
        return self.paths


def unchanged_us(row: tables.Row, paths: RadixPaths, lengths: np.ndarray, cost: CostModel) -> float:
    """Median microseconds of a step whose rows are one token longer, and nothing else."""
    spec = spec_of(row, headroom=128)
    layout = layout_for(spec, paths, lengths, Planner(spec, cost, UNLIMITED))
    staging = torch.zeros(layout.size, dtype=torch.int32)
    maker = PlanMaker(spec, cost, layout, lambda: staging, lambda *_: [])
    planner = BatchPlanner()
    planner.use([maker], [row.num_kv_heads])
    requests = [(object(), object(), 1000 + i, i, 0) for i in range(row.batch)]

    def batch() -> Batch:
        # equal to the last step's, but made anew as the scheduler's hook does
        columns = tuple(tuple([r[i] for r in requests]) for i in range(5))
        return Batch((row.batch, columns, None), paths)

    planner.plan_if_changed(batch(), RowLengths.known(lengths), None)
    times = []
    for step in range(1, 100):
        now, grown = batch(), lengths + step
        start = time.perf_counter()
        changed = planner.plan_if_changed(now, RowLengths.known(grown), None)
        times.append(time.perf_counter() - start)
        assert not changed
    return statistics.median(times) * 1e6


def planned_row(row: tables.Row) -> dict[str, object]:
    """What is predicted of a row of the public tables."""
    forest = PrefixForest.from_radix_paths(*radix_paths(row, tails=False))
    spec = spec_of(row)
    plan = make_plan(forest, spec, cost_of(spec), UNLIMITED).summary()
    return {
        "table": row.table,
        "name": row.name,
        "heads": row.heads,
        "tasks": plan["tasks"],
        "makespan_us": round(plan["makespan_us"], 3),
        "balance": round(plan["mean_load_us"] / plan["makespan_us"], 4),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line per batch and a summary per table."""
    args = make_parser().parse_args(argv)
    changed = [changed_batch(tree, args.repeats) for tree in CHANGED]
    for batch in changed:
        print(
            f"{batch['batch']:5d} requests, {batch['tree']}: {batch['plan_ms']:.3f} ms, "
            f"{batch['cold_plan_ms']:.3f} ms with cold caches (stage by stage "
            f"{batch['stages_ms']:.3f} and {batch['cold_stages_ms']:.3f} ms); "
            f"unchanged {batch['unchanged_us']:.0f} us"
        )
    rows = [planned_row(row) for row in tables.all_rows()]
    if args.against:
        measured = json.loads(args.against.read_text())["rows"]
        earlier = {(r["table"], r["name"], r["heads"]): r["plan"]["makespan_us"] for r in measured}
        for row in rows:
            before = earlier[row["table"], row["name"], row["heads"]]
            row["of_earlier"] = round(row["makespan_us"] / before, 4)
    by_table = defaultdict(list)
    for row in rows:
        by_table[row["table"]].append(row)
    for table, of_table in by_table.items():
        line = f"{table}: balance {statistics.mean(r['balance'] for r in of_table):.3f} in the mean"
        if args.against:
            ratios = [r["of_earlier"] for r in of_table]
            mean = math.exp(statistics.mean(map(math.log, ratios)))
            line += (
                f"; predicted makespan {mean:.3f} of the earlier plans', "
                f"{min(ratios):.2f} to {max(ratios):.2f}"
            )
        print(line)
    if args.json:
        head = {"versions": results.versions(), "commit": results.commit()}
        head["command"] = results.command()
        args.json.write_text(json.dumps(head | {"changed": changed, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
