"""Time launch configurations on rows that span the tables; the winner goes to kernels/launch.py.

    python scripts/kernels/tune_launch.py \\
        --configs 64x64+128x64+b64x64/5/4/1/we,16x64+64x64+b64x64/3/4/2

A configuration is `query tiles+tile of bundles/stages/warps/programs per SM`, a tile
`rows x KV tokens`; a last field may name `e` (early launch) and `w` (warp roles), see
`LaunchConfig`. Every result is checked against fp64 before it is timed; PAC is also timed without
POR.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from library import results
from library.attention import tables, timing
from library.attention.measure import limit_us
from library.attention.peers import call_of, wrapper_of
from library.attention.problem import KVPool, Problem
from library.options import parser_of

from sglang_codec import PrefixForest
from sglang_codec import attention as attention_module
from sglang_codec.kernels.launch import LaunchConfig, Tile

ROWS = (
    ("pat", "PAT-20", "32/8"),
    ("codec", "ratio 0.05", "32/8"),
    ("codec", "batch120k 64", "32/8"),
    ("codec", "depth 6", "32/8"),
    ("codec", "depth 2", "32/8"),
    ("pat", "PAT-3", "32/8"),
    ("pat", "PAT-11", "32/8"),
    ("fasttree", "FT-10", "32/8"),
    ("fasttree", "FT-1", "16/1"),
    ("pat", "PAT-18", "32/32"),
    ("controls", "8_8192", "32/8"),
)


def parse_config(text: str) -> LaunchConfig:
    """`64x64+128x64+b64x64/5/4/1/we` -> LaunchConfig."""
    names, stages, warps, ctas, *flags = text.split("/")
    tiles, bundle = [], None
    for name in names.split("+"):
        tile = Tile(*map(int, name.removeprefix("b").split("x")))
        if name.startswith("b"):
            bundle = tile
        else:
            tiles.append(tile)
    roles = {"early_launch": "e" in "".join(flags), "warp_roles": "w" in "".join(flags)}
    return LaunchConfig(tuple(tiles), bundle, int(stages), int(warps), int(ctas), **roles)


@contextmanager
def without_por() -> Iterator[None]:
    """PAC alone: wrong results, but its time."""
    por = attention_module.por
    attention_module.por = lambda *args, **kwargs: None
    try:
        yield
    finally:
        attention_module.por = por


def measure(
    problem: Problem, forest: PrefixForest, config: LaunchConfig, calls: int
) -> dict[str, Any]:
    """Microseconds of a checked configuration, with and without POR, and its plan."""
    wrapper = wrapper_of(problem, config=config)
    wrapper.plan(forest, sm_scale=problem.sm_scale)
    run = call_of(wrapper, problem)
    error = problem.errors(run(0))[0]
    samplers = {"us": timing.graph_sampler(run, problem.layers, calls)}
    with without_por():
        samplers["us_pac"] = timing.graph_sampler(run, problem.layers, calls)
    times = timing.measure(samplers, calls, 2)
    return {"err": error} | times | {"plan": wrapper.launch_plan.summary()}


def line(record: dict[str, Any]) -> str:
    """A record as it is printed."""
    if "why" in record:
        return f"   {record['config']:34s} {record['why']}"
    us, plan = record["us"], record["plan"]
    return (
        f"   {record['config']:34s} {us:.4g} us (PAC {record['us_pac']:.4g}), "
        f"{record['limit_us'] / us:.0%} of the limit, error {record['err']:.1e}, "
        f"{plan['tasks']} tasks, {plan['parts']} parts, predicted {plan['makespan_us']:.1f} us"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every configuration on every row."""
    parser = parser_of(__doc__)
    parser.add_argument("--configs", required=True, type=lambda text: text.split(","))
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--only", default="", help="rows whose table, name or heads contain this")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    try:
        configs = {text: parse_config(text) for text in options.configs}
    except (ValueError, TypeError) as error:
        parser.error(f"--configs: {error}: see --help for the form of a configuration")
    device = torch.device("cuda")
    ceilings = timing.ceilings(device)
    head = results.head(torch.cuda.get_device_name()) | {"ceilings": ceilings}
    print(head["gpu"], ceilings, flush=True)
    pool = KVPool(getattr(torch, options.dtype), device)
    records = []
    for row in tables.all_rows():
        key = (row.table, row.name, row.heads)
        if key not in ROWS or options.only not in " ".join(key):
            continue
        problem = Problem(row, pool)
        forest = PrefixForest.from_paths(problem.paths)
        limit = max(limit_us(problem, ceilings))
        calls = timing.calls_per_replay(problem.layers, limit)
        print(f"{' '.join(key)} limit {limit:.1f}", flush=True)
        for text, config in configs.items():
            record = {"row": key, "config": text, "limit_us": limit}
            try:
                record |= measure(problem, forest, config, calls)
            except Exception as error:  # whatever a configuration does, the others are measured
                record["why"] = f"{type(error).__name__}: {error}"[:160]
            records.append(record)
            print(line(record), flush=True)
        if options.json:
            results.write(head | {"records": records}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
