#!/usr/bin/env python3
"""What division and scheduling each bring: the same kernels on plans made in different ways.

    python scripts/planner/ablate_plans.py --rows quick --json docs/results/ablation_h100.json
    python scripts/planner/ablate_plans.py --rows codec --predict

Against the planner's own plan stand the division without the tape, the division dealt out in turn,
chunks of whole pages dealt out in turn, and a fixed number of splits. Absorbed runs and bundles of
tails are the same in all. `--predict` needs no GPU: it prints what the cost table of an H100 says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from bench_planner import UNLIMITED, cost_of, radix_paths, spec_of
from cuts import CUTS
from library import results
from library.attention import tables, timing
from library.attention.measure import WRONG, limit_us
from library.attention.problem import SLOTS, KVPool, Problem
from library.attention.summary import geometric_mean

from sglang_codec import PrefixForest, PrefixSharedDecodeWrapper
from sglang_codec.planning.planner import make_plan

OWN = "planner"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", default="quick", help=f"from {', '.join(tables.PRESETS)}")
    add("--only", help="rows whose table, name or tree contains this text")
    add("--slots", choices=SLOTS, default="scattered")
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    add("--head-dim", type=int, default=tables.HEAD_DIM)
    add("--layers", type=int, help="distinct KV layers; default: enough to keep L2 cold")
    add("--rounds", type=int, default=2)
    add("--predict", action="store_true", help="makespans of the H100's cost table, no GPU")
    add("--device", default="cuda")
    add("--json", type=Path)
    add("--commit", help="commit to record; default: git, or BENCH_COMMIT")
    return parser


def predict(row: tables.Row) -> dict:
    """Predicted makespan and tasks of each plan."""
    spec = spec_of(row)
    cost = cost_of(spec)
    forest = PrefixForest.from_radix_paths(*radix_paths(row, tails=False))
    plans = {
        name: make_plan(forest, spec, cost, UNLIMITED, cut).summary() for name, cut in CUTS.items()
    }
    us = {name: plan["makespan_us"] for name, plan in plans.items()}
    return head_of(row) | {"us": us, "plan": plans, "wrong": [], "why": {}}


def measure(row: tables.Row, pool: KVPool, ceilings: dict, options: argparse.Namespace) -> dict:
    """Time each plan's kernels on one problem, each checked against the exact answer."""
    problem = Problem(
        row, pool, slots=options.slots, layers=options.layers, head_dim=options.head_dim
    )
    forest = PrefixForest.from_paths(problem.paths)
    limit = max(limit_us(problem, ceilings))
    calls = problem.layers
    if problem.device.type == "cuda":
        calls = timing.calls_per_replay(problem.layers, limit)
    outcome: dict[str, dict] = {"err": {}, "plan": {}, "why": {}}
    samplers, kept = {}, []
    for name, cut in CUTS.items():
        try:
            wrapper = _wrapper(problem)
            wrapper.plan(forest, sm_scale=problem.sm_scale, cut=cut)
            run = _run(wrapper, problem)
            outcome["err"][name] = problem.errors(run(0))[0]
            samplers[name] = timing.make_sampler(problem.device)(run, problem.layers, calls)
            outcome["plan"][name] = wrapper.launch_plan.summary()
            kept.append(wrapper)  # a graph refers to its buffers
        except torch.OutOfMemoryError as error:
            outcome["why"][name] = f"out of memory: {error}"
    us = timing.measure(samplers, calls, options.rounds)
    wrong = [name for name in us if not outcome["err"][name] <= WRONG]
    head = head_of(row) | {"dtype": options.dtype, "slots": options.slots, "limit_us": limit}
    return head | {"us": us, "wrong": wrong} | outcome


def _wrapper(problem: Problem) -> PrefixSharedDecodeWrapper:
    return PrefixSharedDecodeWrapper(
        problem.num_qo_heads,
        problem.num_kv_heads,
        problem.head_dim,
        dtype=problem.dtype,
        device=problem.device,
    )


def _run(wrapper: PrefixSharedDecodeWrapper, problem: Problem) -> timing.Run:
    out = torch.full_like(problem.q, float("nan"))
    return lambda layer: wrapper.run(problem.q, problem.k[layer], problem.v[layer], out=out)


def head_of(row: tables.Row) -> dict:
    return {
        "table": row.table,
        "name": row.name,
        "heads": row.heads,
        "tree": row.tree,
        "batch": row.batch,
    }


def slower(row: dict) -> dict[str, float]:
    """How many times longer each other plan takes than the planner's own."""
    right = {name: us for name, us in row["us"].items() if name not in row["wrong"]}
    if OWN not in right:
        return {}
    return {name: us / right[OWN] for name, us in right.items() if name != OWN}


def report(rows: list[dict]) -> str:
    """Markdown: microseconds of the planner's plan, the others as multiples, and their means."""
    names = [*dict.fromkeys(name for row in rows for name in slower(row))]
    lines = [f"| row | heads | {OWN}, us | {' | '.join(names)} |", "|---" * (3 + len(names)) + "|"]
    for row in rows:
        times = slower(row)
        cells = [f"{row['table']} {row['name']}", row["heads"]]
        cells.append(f"{row['us'][OWN]:.1f}" if OWN in row["us"] else "-")
        cells += [f"{times[name]:.2f}x" if name in times else "-" for name in names]
        lines.append(f"| {' | '.join(cells)} |")
    means = [geometric_mean(slower(r)[name] for r in rows if name in slower(r)) for name in names]
    cells = ["geometric mean", "", "", *(f"{mean:.2f}x" for mean in means)]
    return "\n".join([*lines, f"| {' | '.join(cells)} |"])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    options = make_parser().parse_args(argv)
    selected = tables.select(options.rows.split(","), only=options.only)
    device = torch.device("cpu" if options.predict else options.device)
    ceilings = {} if options.predict else timing.ceilings(device)
    gpu = "predicted for an H100" if options.predict else results.gpu_name(device)
    document = results.Report(
        gpu, results.versions(), options.commit or results.commit(), results.command(), ceilings
    )
    pool = KVPool(*[getattr(torch, options.dtype)] * 2, device)
    for row in selected:
        if options.predict:
            document.rows.append(predict(row))
        else:
            document.rows.append(measure(row, pool, ceilings, options))
        print(report(document.rows[-1:]).splitlines()[-2], flush=True)
        if options.json:
            document.write(options.json)
    print(report(document.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
