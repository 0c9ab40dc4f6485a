#!/usr/bin/env python3
"""What attention costs inside a model: with cold caches, and behind other kernels.

`bench_kernels.py` times attention layers one after the other. In a model the weights of the layers
in between drive everything out of the caches, the kernel's own instructions too, and what is
launched before says when it may begin. Here each call is: a product with a weight matrix of 117 MB,
one elementwise kernel that writes the queries, the write of the new keys and values, attention. The
time of the same without attention is taken off; `alone` is attention by itself, as there.

    python scripts/kernels/bench_in_model.py --json out/in_model.json
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from library import results
from library.attention import stock_peers, timing
from library.attention.peers import call_of, wrapper_of
from library.attention.problem import KVPool, Problem
from library.attention.tables import Row, parse_tree
from library.options import parser_of

from sglang_codec import PrefixForest
from sglang_codec.kernels.kv_store import store_kv

TREES = ("1_8192", "1_8448", "8_1024", "64_2048", "1,32_8192,256", "1,256_256,32")
HEADS = "32/8"
HIDDEN, INNER = 4096, 14336
LEAST_CALLS = 32
ROUNDS = 5
TOLERANCE = 1e-2  # between the ways, in bf16

Step = Callable[[int], torch.Tensor]


def stock_store(k: torch.Tensor, v: torch.Tensor, problem: Problem, slots: torch.Tensor) -> Step:
    """SGLang's own write."""
    from sglang.kernels.ops.kvcache.kvcache import store_cache

    def store(layer: int) -> None:
        pairs = (problem.k[layer], problem.v[layer])
        store_cache(k.flatten(1), v.flatten(1), *(b.flatten(1) for b in pairs), slots)

    return store


def ways(problem: Problem) -> dict[str, tuple[Step, Step | None]]:
    """Name -> (writing, attending); both launch on the current stream."""
    wrapper = wrapper_of(problem)
    wrapper.plan(PrefixForest.from_paths(problem.paths), sm_scale=problem.sm_scale)
    slots = problem.tensor([row[-1] for row in problem.request_slots], torch.int64)
    k, v = problem.k[0][slots].clone(), problem.v[0][slots].clone()

    def own(layer: int) -> None:
        store_kv(k, v, problem.k[layer], problem.v[layer], slots, early_launch=True)

    codec = call_of(wrapper, problem)
    store = stock_store(k, v, problem, slots)
    return {
        "codec": (own, codec),
        "codec, SGLang's store": (store, codec),
        "fa3": (store, stock_peers.fa3(problem)[0].run),
        "flashinfer": (store, stock_peers.flashinfer(problem)[-1].run),
        "nothing": (store, None),
    }


def measure(tree: str, pool: KVPool) -> dict[str, Any]:
    """Microseconds per layer of every way, in a model and alone."""
    problem = Problem(Row("in model", tree, HEADS, *parse_tree(tree)), pool)
    weights = torch.randn(HIDDEN, INNER, device=pool.device, dtype=pool.dtype)
    hidden = torch.randn(problem.batch, HIDDEN, device=pool.device, dtype=pool.dtype)
    wide = torch.empty(problem.batch, INNER, device=pool.device, dtype=pool.dtype)
    queries, calls = problem.q.clone(), max(problem.layers, LEAST_CALLS)
    samplers, expected, errors = {}, None, {}
    for name, (store, attend) in ways(problem).items():

        def step(layer: int, store: Step = store, attend: Step | None = attend) -> torch.Tensor:
            torch.mm(hidden, weights, out=wide)
            torch.mul(queries, 1.0, out=problem.q)
            store(layer)
            return attend(layer) if attend else wide

        if attend:
            found = step(0).float().clone()
            expected = found if expected is None else expected
            errors[name] = float((found - expected).abs().max())
            samplers[f"{name}, alone"] = timing.graph_sampler(attend, problem.layers, calls)
        samplers[name] = timing.graph_sampler(step, problem.layers, calls)
    us = timing.measure(samplers, calls, ROUNDS)
    around = us.pop("nothing")
    in_model = {name: us[name] - around for name in us if not name.endswith("alone")}
    alone = {name.removesuffix(", alone"): us[name] for name in us if name.endswith("alone")}
    if worst := {name: error for name, error in errors.items() if not error < TOLERANCE}:
        raise RuntimeError(f"{tree}: outputs differ by {worst}, at most {TOLERANCE} is expected")
    return {"tree": tree, "heads": HEADS, "around_us": around, "us": in_model, "alone_us": alone}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--trees", nargs="+", default=TREES, metavar="TREE")
    parser.add_argument("--json", type=Path, metavar="OUT.json")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("needs a CUDA GPU: on a CPU there are no caches to be driven out of")
    pool = KVPool(torch.bfloat16, torch.bfloat16, torch.device("cuda"))
    rows = []
    for tree in options.trees:
        rows.append(row := measure(tree, pool))
        shown = "  ".join(
            f"{name} {us:.1f} ({row['alone_us'][name]:.1f})" for name, us in row["us"].items()
        )
        print(f"{tree}: us in a model (alone): {shown}", flush=True)
    if options.json:
        head = results.head(torch.cuda.get_device_name())
        results.write(head | {"rows": rows}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
