"""Time launch configurations on rows that span the tables; the winner goes to kernels/launch.py.

    python scripts/kernels/tune_launch.py \\
        --configs 64x64+128x64+b64x64/5/4/1/we,16x64+64x64+b64x64/3/4/2

A configuration is `query tiles+tile of bundles/stages/warps/programs per SM`, a tile
`rows x KV tokens`; a last field may name `e` (early launch) and `w` (warp roles), see
`LaunchConfig`. Every result is checked against fp64 before it is timed; PAC is also timed without
POR.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from library import results
from library.attention import tables, timing
from library.attention.measure import limit_us
from library.attention.problem import KVPool, Problem

from sglang_codec import PrefixForest, PrefixSharedDecodeWrapper
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
    numbers = map(int, (stages, warps, ctas))
    flag = "".join(flags)
    return LaunchConfig(
        tuple(tiles),
        bundle,
        *numbers,
        early_launch="e" in flag,
        warp_roles="w" in flag,
    )


@contextmanager
def without_por() -> Iterator[None]:
    """PAC alone: wrong results, but its time."""
    por = attention_module.por
    attention_module.por = lambda *args, **kwargs: None
    try:
        yield
    finally:
        attention_module.por = por


def prepare(
    problem: Problem, forest: PrefixForest, config: LaunchConfig
) -> tuple[PrefixSharedDecodeWrapper, timing.Run]:
    """A planned wrapper and the call that runs it over a NaN-filled output."""
    wrapper = PrefixSharedDecodeWrapper(
        problem.num_qo_heads,
        problem.num_kv_heads,
        problem.head_dim,
        dtype=problem.dtype,
        config=config,
    )
    wrapper.plan(forest, sm_scale=problem.sm_scale)
    out = torch.full_like(problem.q, float("nan"))

    def run(layer: int) -> torch.Tensor:
        return wrapper.run(problem.q, problem.k[layer], problem.v[layer], out=out)

    return wrapper, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda")
    ceilings = timing.ceilings(device)
    print(torch.cuda.get_device_name(), ceilings, flush=True)
    head = {
        "gpu": torch.cuda.get_device_name(),
        "versions": results.versions(),
        "commit": results.commit(),
        "command": results.command(),
        "ceilings": ceilings,
    }
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
        for text in options.configs.split(","):
            record = {"row": key, "config": text, "limit_us": limit}
            try:
                config = parse_config(text)
                wrapper, run = prepare(problem, forest, config)
                record["err"] = problem.errors(run(0))[0]
                samplers = {"us": timing.graph_sampler(run, problem.layers, calls)}
                with without_por():
                    samplers["us_pac"] = timing.graph_sampler(run, problem.layers, calls)
                record |= timing.measure(samplers, calls, 2)
                record["plan"] = wrapper.launch_plan.summary()
            except Exception as error:
                record["why"] = f"{type(error).__name__}: {error}"[:160]
            records.append(record)
            shown = {k: v for k, v in record.items() if k[:2] == "us" or k in ("err", "why")}
            fields = (
                f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in shown.items()
            )
            plan = record.get("plan", {})
            print(
                f"   {text:34s}",
                " ".join(fields),
                f"{limit / record.get('us', 1e9):.0%}",
                f"tasks {plan.get('tasks')} parts {plan.get('parts')} "
                f"predicted {plan.get('makespan_us', 0):.1f}",
                flush=True,
            )
        if options.json:
            options.json.write_text(json.dumps({**head, "records": records}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
