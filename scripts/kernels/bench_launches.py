#!/usr/bin/env python3
"""What an eager decode step costs the host per layer: writing keys and values, and attention.

Above the largest CUDA graph SGLang launches every layer from Python, and the host decides how long
a step takes. Each way writes to SGLang's own pool and attends as its backend does; the time is that
of the host alone, over short contexts, so that the GPU is never waited for.

    python scripts/kernels/bench_launches.py --json out/launches.json
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from library import results
from library.attention import stock_peers
from library.attention.peers import wrapper_of
from library.attention.problem import KVPool, Problem
from library.attention.tables import Row, parse_tree
from library.options import parser_of, positive

from sglang_codec import PrefixForest
from sglang_codec.attention import prefix_shared_attention
from sglang_codec.kv_writer import KVWriter

TREE, HEADS, LAYERS = "1,512_16,16", "32/8", 8
ROUNDS, CALLS = 7, 200

Step = Callable[[int], object]


def ways(problem: Problem) -> dict[str, Step]:
    """Name -> one layer's write and attention."""
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    wrapper = wrapper_of(problem)
    wrapper.plan(PrefixForest.from_paths(problem.paths), sm_scale=problem.sm_scale)
    pool = MHATokenToKVPool(
        size=problem.num_slots,
        page_size=1,
        dtype=problem.dtype,
        head_num=problem.num_kv_heads,
        head_dim=problem.head_dim,
        layer_num=problem.layers,
        device="cuda",
        enable_memory_saver=False,
    )
    numbers = range(problem.layers)
    problem.k = [pool.get_key_buffer(i)[: problem.num_slots] for i in numbers]
    problem.v = [pool.get_value_buffer(i)[: problem.num_slots] for i in numbers]
    layers = [SimpleNamespace(layer_id=i, k_scale=None, v_scale=None) for i in numbers]
    slots = problem.tensor([row[-1] for row in problem.request_slots], torch.int64)
    k, v = (torch.randn_like(problem.q[:, : problem.num_kv_heads]) for _ in range(2))
    writer = KVWriter(pool, wrapper.config)

    def attend(layer: int, *, anew: bool) -> torch.Tensor:
        if anew:
            wrapper._buffers.launches.clear()
            writer._launches.clear()
        writer.write(layers[layer], k, v, slots)
        out = torch.empty_like(problem.q)
        buffers = pool.get_key_buffer(layer), pool.get_value_buffer(layer)
        options = {"sm_scale": problem.sm_scale, "config": wrapper.config}
        prefix_shared_attention(problem.q, *buffers, out, wrapper._buffers, **options)
        return out

    def stock(run: Step) -> Step:
        def step(layer: int) -> object:
            pool.set_kv_buffer(layers[layer], slots, k, v, None, None)
            return run(layer)

        return step

    return {
        "codec": lambda layer: attend(layer, anew=False),
        "codec, nothing kept": lambda layer: attend(layer, anew=True),
        "flashinfer": stock(stock_peers.flashinfer(problem)[0].run),
        "fa3": stock(stock_peers.fa3(problem)[0].run),
    }


def host_us(step: Step, layers: int) -> float:
    """The fastest of some rounds: whatever else the host does only adds to it."""
    best = float("inf")
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for call in range(CALLS):
            step(call % layers)
        best = min(best, (time.perf_counter() - started) / CALLS)
    torch.cuda.synchronize()
    return best * 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--layers", type=positive, default=LAYERS)
    parser.add_argument("--json", type=Path, metavar="OUT.json")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("needs a CUDA GPU: without one nothing is launched")
    pool = KVPool(torch.bfloat16, torch.bfloat16, torch.device("cuda"))
    row = Row("launches", TREE, HEADS, *parse_tree(TREE))
    problem = Problem(row, pool, layers=options.layers)
    us = {name: host_us(step, problem.layers) for name, step in ways(problem).items()}
    for name, spent in us.items():
        print(f"{name}: {spent:.1f} us of the host a layer", flush=True)
    if options.json:
        head = results.head(torch.cuda.get_device_name())
        results.write(head | {"tree": TREE, "heads": HEADS, "host_us": us}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
