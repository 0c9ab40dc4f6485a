#!/usr/bin/env python3
"""Time what a decode step costs the host, from the batch to the plan that is sent.

    python scripts/planner/bench_reading.py --cold --json reading.json

Needs no GPU: SGLang's own radix tree (of the version that is imported) and its own requests, an
H100's cost table and program slots, and memory of the host in place of the device's. With
`--device cuda` pinned memory, the copy and the launch that fills the KV index are in it. A batch of
`rows` requests shares a tree of `depth` levels; every request ends in a tail of its own. Steps, as
the overlap scheduler makes them when one request leaves and another joins:

`join`: the first one. `moved`: the next, when the joined one's prompt has become the tree's.
`unchanged`: the one after. `ahead`: one joins ahead of the others, as after a mixed batch.
`all_new`: no request is known.

Stages: `describe`, the signature; `read`, comparing it and reading the tree; `make`, planning;
`send`. Microseconds of the thread, medians: other processes slow it down, but are not counted.
`--cold` empties the caches before each step, as a server's other work does.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from array import array
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from bench_planner import H100, OtherWork, cost_of
from library.options import parser_of

RUN_TOKENS = 16  # of each level of the tree
POOL_ROWS, POOL_SLOTS = 2049, 400_000


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rows", default="256,1024", help="batch sizes")
    parser.add_argument("--depths", default="4", help="levels of the tree, tails included")
    parser.add_argument("--joins", type=int, default=20, help="joining requests of each case")
    parser.add_argument("--device", default="cpu", help="where plans are sent: cpu or cuda")
    parser.add_argument("--cold", action="store_true", help="empty the caches before each step")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    cases = [
        measure(int(rows), int(depth), arguments.joins, Host(arguments.device, arguments.cold))
        for rows in arguments.rows.split(",")
        for depth in arguments.depths.split(",")
    ]
    import sglang

    text = json.dumps({"sglang": sglang.__version__, "cases": cases}, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


def measure(rows: int, depth: int, joins: int, host: Host) -> dict[str, Any]:
    """The medians of one batch size and depth."""
    server = Server(depth)
    reqs = [server.request(number) for number in range(rows + 2 * joins)]
    running = reqs[:rows]
    for _ in range(2):
        host.step(server, running)
    steps: dict[str, list[dict[str, float]]] = defaultdict(list)
    for number in range(rows, rows + joins):
        # one joins, and one that is anywhere in the batch leaves
        del running[(number * 37) % rows]
        running.append(reqs[number])
        with server.before_insertion(reqs[number]):
            steps["join"].append(host.step(server, running))
        steps["moved"].append(host.step(server, running))
        steps["unchanged"].append(host.step(server, running))
    for number in range(rows + joins, rows + 2 * joins):
        del running[(number * 37) % rows]
        running.insert(0, reqs[number])
        with server.before_insertion(reqs[number]):
            steps["ahead"].append(host.step(server, running))
    for _ in range(5):
        host.forget()
        steps["all_new"].append(host.step(server, running))
    return {
        "rows": rows,
        "depth": depth,
        "cold": host.is_cold,
        "device": host.device_name,
        "reader": host.batch.reader_name,
        "nodes": host.planner.first.packed.num_shared,
        **{step: medians(times) for step, times in steps.items()},
    }


def medians(steps: list[dict[str, float]]) -> dict[str, float]:
    """Microseconds by stage; `total`: the stages that a server's counters hold."""
    return {
        stage: round(1e6 * statistics.median(times[stage] for times in steps), 1)
        for stage in steps[0]
    }


class Host:
    """What codec does of a step on the host of a server.

    Args:
        device: where plans are sent. On a CPU nothing is launched.
    """

    def __init__(self, device: str, is_cold: bool) -> None:
        from sglang_codec.attention_shape import AttentionShape
        from sglang_codec.batch_planner import BatchPlanner, StepTimes
        from sglang_codec.buffers import PlanBuffers
        from sglang_codec.device import plan_spec
        from sglang_codec.plan_maker import PlanMaker
        from sglang_codec.planning.capacity import capacity_for
        from sglang_codec.planning.plan import PlanLayout

        shape = AttentionShape.plain(32, 8, 128)
        spec = plan_spec(H100, shape, tail_headroom=128)
        capacity = capacity_for(spec, rows=POOL_ROWS, pool_slots=POOL_SLOTS)
        layout = PlanLayout.of(capacity, spec)
        self.buffers = PlanBuffers(layout, shape, torch.device(device))
        self._is_gpu, staging = self.buffers.device.type == "cuda", self.buffers.staging
        self.device_name = torch.cuda.get_device_name() if self._is_gpu else "cpu"
        # requests' rows, as long as theirs ever get here
        self._table = torch.zeros((POOL_ROWS, 4096), dtype=torch.int32, device=device)
        if not self._is_gpu:
            # as of a caching allocator: what comes is memory that was used before
            used = cycle([self.buffers.staging() for _ in range(4)])
            staging = partial(next, used)
        maker = PlanMaker(spec, cost_of(spec), layout, staging, lambda *_: [])
        self.planner = BatchPlanner()
        self.planner.times = StepTimes(time.thread_time)
        self.planner.use([maker], [8])
        self.is_cold, self.steps = is_cold, 0
        self._other_work = OtherWork() if is_cold else (lambda: None)
        self.forget()

    def forget(self) -> None:
        """Everything that is known of requests."""
        from sglang_codec.patches.forward_batch import Attacher

        self._attacher = Attacher()
        self.planner.use(self.planner.makers, [8])

    def step(self, server: Server, reqs: list[Any]) -> dict[str, float]:
        """Seconds of a decode step of these requests, by stage."""
        from sglang_codec.attention import fill_kv_index
        from sglang_codec.row_lengths import RowLengths
        from sglang_codec.served_group import sent_spans

        self.steps += 1
        lengths = torch.tensor([len(req.origin_input_ids) + self.steps for req in reqs])
        pool_rows = torch.arange(len(reqs), device=self.buffers.device)
        if self._is_gpu:
            torch.cuda.synchronize()
        self._other_work()
        planner, times, started = self.planner, self.planner.times, time.thread_time()
        self.batch = self._attacher.codec_batch(server.batch(reqs))
        described = time.thread_time() - started
        for new in planner.plan_if_changed(self.batch, RowLengths.known(lengths.numpy()), None):
            spans, longest = sent_spans(self.buffers, new)
            if self._is_gpu:
                fill_kv_index(self.buffers, self._table, pool_rows, spans, longest=longest)
        times.end("send")
        stages = {stage: getattr(times, stage) for stage in ("read", "make", "send")}
        return {"describe": described, **stages, "total": sum(stages.values())}


class Server:
    """SGLang's radix tree, and running requests in it; a level has twice the one above's nodes."""

    def __init__(self, depth: int) -> None:
        self.depth, self.tree = depth, make_tree()
        self._slot = 1

    def batch(self, reqs: list[Any]) -> Any:
        """What `codec` looks at of a `ScheduleBatch`."""
        return SimpleNamespace(reqs=reqs, seq_lens=reqs, tree_cache=self.tree)

    @contextmanager
    def before_insertion(self, req: Any) -> Iterator[None]:
        """As the request is until its prompt is in the tree: it holds what it has matched."""
        kv = req if hasattr(req, "req_pool_idx") else req.kv
        node, owned = req.last_node, kv.cache_protected_len
        above = self.tree.resolve_node_handle(node).parent
        req.last_node = above.id if isinstance(node, int) else above
        kv.cache_protected_len = owned - RUN_TOKENS
        yield
        req.last_node, kv.cache_protected_len = node, owned

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
