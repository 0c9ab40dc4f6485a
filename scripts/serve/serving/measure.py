"""One row: a workload on a running server; `args` is the command line of `bench_serving.py`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from library.servers.clients import Request, Sampling, ServerClient
from library.servers.counters import codec_counters, increase
from library.servers.server import Server
from library.servers.workload import Arrivals, Workload, prompts, requests_of, short, warm_ups

from serving.arrivals import measure_arrivals
from serving.document import digest
from serving.jobs import AnyWorkload
from serving.scheduler_log import accept_length, read_log
from serving.steady import Steady, latencies, steady_state

# a client that sees another time per token than the scheduler by more than this says so
TOLERANCE = 0.05
CHUNKS_PER_STEP = 16  # SGLang's HTTP process passes on a few thousand chunks a second
PREPARING_STEPS = 4


@dataclass(frozen=True, slots=True)
class Target:
    """A running server and what has to be known of its model.

    Args:
        kv_bytes: of a token, over all layers, on one GPU.
    """

    server: Server
    client: ServerClient
    model: str
    vocabulary: int
    kv_bytes: int


def settings_of(workload: AnyWorkload, args: Namespace) -> dict[str, Any]:
    """The part of a row that is known before it is measured, and that a later command looks for."""
    if isinstance(workload, Arrivals):
        return {
            "workload": workload.name,
            "arrivals": f"{workload.groups}x{workload.prompts}",
            "requests": workload.requests,
            "batch": None,
            "shared_tokens": workload.system,
            "private_tokens": workload.question,
            "steps": workload.output,
            "request_rate": workload.rate,
            "repeats": args.repeats,
            "itl_limit_ms": args.itl_limit,
        }
    return {
        "workload": workload.name,
        "tree": workload.tree,
        "batch": workload.batch,
        "shared_tokens": workload.shared_tokens,
        "private_tokens": workload.prompt_tokens - workload.shared_tokens,
        "steps": workload.steps,
        "stream_interval": interval_of(workload.batch, args.stream_interval),
    }


def interval_of(batch: int, wanted: int) -> int:
    """Tokens per chunk: with a chunk per token and request, SGLang's HTTP process falls behind the
    scheduler at large batches, on every backend, and the client would measure that."""
    return wanted or max(1, batch // CHUNKS_PER_STEP)


def measure(workload: AnyWorkload, target: Target, args: Namespace) -> dict[str, Any]:
    """The row of a workload, without its bound.

    Raises:
        GenerationError, NotSteady, BenchmarkFailed: if it could not be measured.
    """
    target.client.flush()
    if isinstance(workload, Arrivals):
        run = partial(measure_arrivals, workload, target, args)
    else:
        levels = prompts(workload, target.vocabulary, args.seed)
        for batch in warm_ups(workload, levels):
            target.client.generate(batch, Sampling())
        requests = requests_of(workload, levels)
        run = partial(_measure_steady, workload, requests, target, args)
    before = codec_counters(target.client.info())
    row = settings_of(workload, args) | run()
    counted = increase(before, codec_counters(target.client.info()))
    stock_tokens = counted.get("kv_tokens_stock", row.get("kv_tokens_stock"))
    # a stock backend reads, from memory or from the L2 cache, every token for every request
    read = {"kv_tokens_read": stock_tokens, "kv_tokens_stock": stock_tokens, "fallbacks": {}}
    return row | read | counted


def prepare(target: Target, args: Namespace, batches: Collection[int]) -> None:
    """Serve a few tokens that nobody counts: what is compiled or allocated at first use."""
    for workload in (short(batch, steps=PREPARING_STEPS) for batch in batches):
        requests = requests_of(workload, prompts(workload, target.vocabulary, args.seed + 1))
        target.client.generate(requests, Sampling())


def _measure_steady(
    workload: Workload, requests: Sequence[Request], target: Target, args: Namespace
) -> dict[str, Any]:
    log_place = target.server.log_end()
    interval = interval_of(workload.batch, args.stream_interval)
    completions = target.client.generate(requests, Sampling(stream_interval=interval))
    steady = steady_state(completions)
    log = target.server.log_since(log_place)
    logged, accepted = read_log(log, workload.batch), accept_length(log)
    scheduler_ms = logged.tpot_ms if logged else None
    return {
        "tpot_ms": steady.tpot_ms,
        "tpot_scheduler_ms": scheduler_ms,
        "cuda_graph": logged.cuda_graph if logged else None,
        "steady_steps": steady.steps,
        "itl_ms": steady.itl_ms,
        **latencies(completions),
        "cached_tokens": sum(completion.cached_tokens for completion in completions),
        "kv_bytes_per_step": kv_bytes_per_step(workload, steady, target.kv_bytes),
        "accept_length": accepted,
        # what drafts save is not known here
        "kv_tokens_stock": None if accepted else decoded_kv_tokens(workload),
        "warnings": disagreement(steady.tpot_ms, scheduler_ms),
        "outputs": [digest(completion.output_ids) for completion in completions],
    }


def kv_bytes_per_step(workload: Workload, steady: Steady, kv_bytes: int) -> dict[str, float]:
    """KV bytes of a step in the middle of the steady state: distinct, and counted per request."""
    generated = workload.batch * (steady.tokens_before + steady.tokens_after) / 2
    return {
        "unique": kv_bytes * (workload.unique_tokens + generated),
        "stock": kv_bytes * (workload.total_tokens + generated),
    }


def decoded_kv_tokens(workload: Workload) -> int:
    """KV tokens of all decode steps of all requests; the prefill makes the first token.

    codec counts what it ran, with the step that SGLang's overlap scheduler adds after a request's
    last token.
    """
    steps = workload.steps - 1
    return steps * workload.total_tokens + workload.batch * steps * (steps + 1) // 2


def disagreement(client_ms: float, scheduler_ms: float | None) -> list[str]:
    """What makes a row's TPOT doubtful."""
    if scheduler_ms is None or abs(client_ms / scheduler_ms - 1) <= TOLERANCE:
        return []
    return [f"the client saw {client_ms:.2f} ms per token, the scheduler {scheduler_ms:.2f} ms"]
