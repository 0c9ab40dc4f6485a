#!/usr/bin/env python3
"""Time what a decode step costs the host before it is planned: the signature and the radix paths.

    python scripts/planner/bench_reading.py --json reading.json

Needs no GPU: SGLang's own radix tree (of the version that is imported) and its own requests. A
batch of `rows` requests shares a tree of `depth` levels; every request ends in a tail of its own.
`unchanged`: the signature of a batch that is the last one's, and the comparison. `join`: a step in
which one request joins, signature included; `read` is its part that reads the tree. `all_new`: all
are. Microseconds of the thread, medians: other processes slow it down, but are not counted.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from library.options import parser_of

RUN_TOKENS = 16  # of each level of the tree


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rows", default="64,256,1024", help="batch sizes")
    parser.add_argument("--depths", default="4,6", help="levels of the tree, tails included")
    parser.add_argument("--joins", type=int, default=40, help="joining requests of each case")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    cases = [
        measure(int(rows), int(depth), arguments.joins)
        for rows in arguments.rows.split(",")
        for depth in arguments.depths.split(",")
    ]
    import sglang

    text = json.dumps({"sglang": sglang.__version__, "cases": cases}, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


def measure(rows: int, depth: int, joins: int) -> dict[str, Any]:
    """The medians of one batch size and depth."""
    from sglang_codec.patches.forward_batch import Attacher

    server = Server(depth)
    reqs = [server.request(number) for number in range(rows + joins)]
    attacher = Attacher()

    def described(reqs: list[Any]) -> Any:
        return attacher.codec_batch(server.batch(reqs))

    running = reqs[:rows]
    last = described(running)
    last.read()
    unchanged = timed(lambda: described(running).signature == last.signature, 4 * joins)
    steps, reads = [], []
    for number in range(rows, rows + joins):
        # one joins, and one that is anywhere in the batch leaves
        del running[(number * 37) % rows]
        running.append(reqs[number])
        started = time.thread_time()
        now = described(running)
        assert now.signature != last.signature
        described_at = time.thread_time()
        paths = now.read()
        ended = time.thread_time()
        steps.append(ended - started)
        reads.append(ended - described_at)
        last = now
    all_new = timed(lambda: fresh(Attacher(), server, running), 5)
    return {
        "rows": rows,
        "depth": depth,
        "reader": last.reader_name,
        "nodes": len(paths.end),
        "unchanged": unchanged,
        "join": microseconds(steps),
        "join_read": microseconds(reads),
        "all_new": all_new,
    }


def fresh(attacher: Any, server: Server, reqs: list[Any]) -> None:
    attacher.codec_batch(server.batch(reqs)).read()


def timed(call: Callable[[], Any], times: int) -> float:
    seconds = []
    for _ in range(times):
        started = time.thread_time()
        call()
        seconds.append(time.thread_time() - started)
    return microseconds(seconds)


def microseconds(seconds: list[float]) -> float:
    return round(1e6 * statistics.median(seconds), 1)


class Server:
    """SGLang's radix tree, and running requests in it; a level has twice the one above's nodes."""

    def __init__(self, depth: int) -> None:
        self.depth, self.tree = depth, make_tree()
        self._slot = 1

    def batch(self, reqs: list[Any]) -> Any:
        """What `codec` looks at of a `ScheduleBatch`."""
        return SimpleNamespace(reqs=reqs, seq_lens=reqs, tree_cache=self.tree)

    def request(self, number: int) -> Any:
        """A running request whose prompt is in the tree."""
        from sglang.srt.managers.schedule_batch import Req
        from sglang.srt.mem_cache.base_prefix_cache import InsertParams, MatchPrefixParams
        from sglang.srt.mem_cache.radix_cache import RadixKey
        from sglang.srt.sampling.sampling_params import SamplingParams

        levels = [number % 2**level for level in range(self.depth - 1)]
        tokens = array("q")
        for level, branch in enumerate([*levels, number]):
            tokens.extend([level * 100_000 + branch] * RUN_TOKENS)
        slots = torch.arange(self._slot, self._slot + len(tokens))
        self._slot += len(tokens)
        self.tree.insert(InsertParams(key=RadixKey(tokens, None), value=slots))
        found = self.tree.match_prefix(MatchPrefixParams(key=RadixKey(tokens, None)))
        request = Req(str(number), "", tokens, SamplingParams(max_new_tokens=8))
        request.last_node = found.last_device_node
        self.tree.inc_lock_ref(request.last_node)
        kv = request if hasattr(request, "req_pool_idx") else request.kv
        kv.req_pool_idx, kv.cache_protected_len = number, len(tokens)
        return request


def make_tree() -> Any:
    """The tree that this SGLang serves with by default, with a core that codec can read."""
    from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.memory_pool import ReqToTokenPool

    from sglang_codec.patches.tree_core import prefer_readable_tree_core

    prefer_readable_tree_core()
    slots = 1 << 18
    pool = SimpleNamespace(device="cpu", dtype=torch.float32)
    arguments: dict[str, Any] = {
        "disable": False,
        "page_size": 1,
        "req_to_token_pool": ReqToTokenPool(8, 8, "cpu", enable_memory_saver=False),
        "token_to_kv_pool_allocator": TokenToKVPoolAllocator(
            slots, torch.float32, "cpu", pool, need_sort=False
        ),
    }
    try:
        from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
        from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
    except ImportError:
        from sglang.srt.mem_cache.radix_cache import RadixCache

        return RadixCache(CacheInitParams(**arguments))
    return UnifiedRadixCache(CacheInitParams(**arguments, tree_components=(ComponentType.FULL,)))


if __name__ == "__main__":
    # SGLang's Rust core needs a torch of its own
    os.environ.setdefault("SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND", "python")
    main()
