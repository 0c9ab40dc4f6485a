"""Measure on a GPU what a task costs: the planner's `cost_tables/<gpu>_d<head dims>[_fp8].json`.

    python scripts/planner/profile_cost_model.py                  # 32/8 heads, bf16, head dim 128
    python scripts/planner/profile_cost_model.py --heads 32/8,32/32,16/1 --json out/cost.json
    python scripts/planner/profile_cost_model.py --kv-dtype float8_e4m3fn

A point of the table is the time of one task (a full query tile over so many KV tokens, one KV head)
on one program slot while all other slots are as busy. It comes from batches of equal tasks that
give every slot two and then four of them: half the difference is the cost, free of launches. The
planner reads the first table, so name the head configuration that matters most first.
"""

from __future__ import annotations

import dataclasses
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from library import results
from library.attention import timing
from library.attention.problem import KVPool, layers_to_stay_cold
from library.options import head_dims, parser_of

from sglang_codec import PrefixForest, PrefixSharedDecodeWrapper
from sglang_codec.attention_shape import AttentionShape
from sglang_codec.device import cost_table, describe_device
from sglang_codec.planning.plan import Plan
from sglang_codec.shape_support import FP8_DTYPES

TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
WAVES = (2, 4)  # tasks per slot of the two batches whose difference is the cost
LARGEST_LAYER_BYTES = 20e9
LEAST_START_US = 0.1  # a task of no tokens costs something, and the table has to increase
ROUGH_BYTES_PER_US = 2e6  # only decides how many calls a replay holds
ROUNDS = 3


class UnevenPlan(Exception):
    """The planner cut or joined what was meant to be equal tasks."""


def equal_forest(runs: int, readers: int, tokens: int, slots: np.ndarray) -> PrefixForest:
    """`runs` disjoint runs of `tokens` tokens, each read by `readers` rows and by nothing else."""
    own = slots[: runs * tokens].reshape(runs, tokens)
    return PrefixForest.from_paths(
        [[(run, own[run])] for run in range(runs) for _ in range(readers)]
    )


def check_even(plan: Plan, waves: int, tokens: int) -> None:
    """Raise UnevenPlan unless every slot has `waves` tasks of `tokens` tokens."""
    per_slot = np.bincount(plan.slot, minlength=plan.num_slots)
    if plan.num_tasks != waves * plan.num_slots or (per_slot != waves).any():
        raise UnevenPlan(
            f"{plan.num_tasks} tasks on {plan.num_slots} slots, {per_slot.min()} to "
            f"{per_slot.max()} each; expected {waves} each"
        )
    if plan.kv_tokens_read != plan.num_tasks * tokens:
        raise UnevenPlan(f"{plan.kv_tokens_read} KV tokens are read, expected {tokens} per task")


def task_us(
    shape: AttentionShape, rows: int, tokens: int, pool: KVPool, scattered: bool
) -> tuple[float, int]:
    """Microseconds of one task on one slot, and the number of slots."""
    readers = max(1, rows // shape.group)
    num_slots = _wrapper(shape, pool).spec.num_slots
    most = max(WAVES) * num_slots * tokens
    least_bytes = _kv_bytes(shape, min(WAVES) * num_slots * tokens)
    layers = layers_to_stay_cold(least_bytes)
    calls = timing.calls_per_replay(layers, least_bytes / ROUGH_BYTES_PER_US)
    k, v = pool.layers(layers, most, shape.num_kv_heads, (shape.key_dim, shape.value_dim))
    slots = np.arange(most, dtype=np.int32)
    if scattered:
        slots = np.random.default_rng(0).permutation(slots)
    samplers, kept = {}, []
    for waves in WAVES:
        wrapper = _wrapper(shape, pool)
        plan = wrapper.plan(equal_forest(waves * num_slots, readers, tokens, slots))
        check_even(plan, waves, tokens)
        q = torch.randn(plan.batch, shape.num_qo_heads, shape.key_dim, device=pool.device)
        run = partial(_attend, wrapper, q.to(pool.dtype), k, v)
        kept.append(run)  # a graph refers to the buffers of its wrapper
        make = timing.make_sampler(pool.device)
        samplers[str(waves)] = make(run, layers, calls)
    times = timing.measure(samplers, calls, ROUNDS)
    few, many = WAVES
    return (times[str(many)] - times[str(few)]) / (many - few), num_slots


def _attend(
    wrapper: PrefixSharedDecodeWrapper,
    q: torch.Tensor,
    k: list[torch.Tensor],
    v: list[torch.Tensor],
    layer: int,
) -> torch.Tensor:
    return wrapper.run(q, k[layer], v[layer])


def _wrapper(shape: AttentionShape, pool: KVPool) -> PrefixSharedDecodeWrapper:
    # every short private row is a task of its own
    config = dataclasses.replace(describe_device(pool.device, shape).config, bundle=None)
    return PrefixSharedDecodeWrapper(
        shape.num_qo_heads,
        shape.num_kv_heads,
        shape.key_dim,
        head_dim_vo=shape.value_dim,
        dtype=pool.dtype,
        kv_data_type=pool.kv_dtype,
        device=pool.device,
        config=config,
    )


def _kv_bytes(shape: AttentionShape, tokens: int) -> int:
    return tokens * shape.num_kv_heads * shape.kv_token_bytes


def measure_table(shape: AttentionShape, pool: KVPool, tokens: list[int], scattered: bool) -> dict:
    """One table: every row tile of the kernel over the token grid, and zero tokens."""
    spec = _wrapper(shape, pool).spec
    row_tiles, num_slots = spec.row_tiles, spec.num_slots
    fitting = [
        n for n in tokens if _kv_bytes(shape, max(WAVES) * num_slots * n) <= LARGEST_LAYER_BYTES
    ]
    us = []
    for rows in row_tiles:
        curve = []
        for n in fitting:
            curve.append(task_us(shape, rows, n, pool, scattered)[0])
            print(f"{shape} rows {rows} tokens {n}: {curve[-1]:.2f} us", flush=True)
        us.append(complete_curve(fitting, curve))
    return {
        "group": shape.group,
        "num_kv_heads": shape.num_kv_heads,
        "slots": num_slots,
        "rows": list(row_tiles),
        "tokens": [0, *fitting],
        "us": us,
    }


def complete_curve(tokens: list[int], us: list[float]) -> list[float]:
    """The measured curve with a point at zero tokens, strictly increasing.

    Noise can make a longer task look cheaper; each point is then raised just above the one before.
    """
    per_token = (us[1] - us[0]) / (tokens[1] - tokens[0])
    start = max(LEAST_START_US, us[0] - per_token * tokens[0])
    curve = [min(start, 0.9 * us[0]) if us[0] > 0 else LEAST_START_US]
    for value in us:
        curve.append(max(value, curve[-1] * 1.001))
    return [round(value, 4) for value in curve]


def document(gpu: str, shape: AttentionShape, tables: list[dict], ceilings: dict) -> dict:
    """The file: its head describes the first table."""
    first = tables[0]
    return {
        "gpu": gpu,
        "dtype": shape.dtype,
        "kv_dtype": shape.kv_dtype,
        "head_dim": shape.key_dim,
        "value_dim": shape.value_dim,
        "group": first["group"],
        "num_kv_heads": first["num_kv_heads"],
        "slots": first["slots"],
        "ceilings": ceilings,
        "commit": results.commit(),
        "command": results.command(),
        "tables": tables,
    }


def main() -> int:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--heads", default="32/8", help="query/KV heads, comma-separated; the first one counts")
    add("--head-dim", type=head_dims, default="128", help="of keys and values: 128 or 192/128")
    add("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    add("--kv-dtype", choices=FP8_DTYPES, help="of the KV cache; default: as --dtype")
    add("--tokens", default=",".join(map(str, TOKENS)))
    add("--slots", choices=("scattered", "contiguous"), default="scattered")
    add("--json", type=Path, help="default: the package's cost_tables folder")
    options = parser.parse_args()
    device = torch.device("cuda")
    gpu = results.gpu_name(device)
    ceilings = timing.ceilings(device)
    print(gpu, ceilings, flush=True)
    dtypes = options.dtype, options.kv_dtype or options.dtype
    pool = KVPool(*(getattr(torch, name) for name in dtypes), device)
    tokens = [int(n) for n in options.tokens.split(",")]
    tables = []
    for heads in options.heads.split(","):
        shape = AttentionShape(*map(int, heads.split("/")), *options.head_dim, *dtypes)
        path = options.json or cost_table(gpu, shape)
        tables.append(measure_table(shape, pool, tokens, options.slots == "scattered"))
        results.write(document(gpu, shape, tables, ceilings), path)
        torch.cuda.empty_cache()
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
