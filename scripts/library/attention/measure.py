"""One row: build the problem, check every peer against the exact answer, time them in turns."""

from __future__ import annotations

import math
import traceback
from dataclasses import dataclass, field

from library.attention import timing, traffic
from library.attention.peers import ADAPTERS, PREFIX_AWARE, WITH_QUERY_ROWS, WITH_SINKS
from library.attention.problem import Problem
from library.attention.runner import Runner, Unsupported

WRONG = 5e-2  # relative error above which an output is called wrong
REASON_LENGTH = 200


class DeviceLost(Exception):
    """A kernel left the device unusable; nothing after it can be measured in this process."""


@dataclass
class Candidate:
    """A runner that gave an output, how far that was off, and how it is timed."""

    peer: str
    runner: Runner
    error: tuple[float, float]
    sampler: timing.Sampler
    calls: int


@dataclass
class Outcome:
    """What a row says about its peers."""

    us: dict[str, float] = field(default_factory=dict)
    err: dict[str, float] = field(default_factory=dict)
    max_abs_err: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    variant: dict[str, str] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    notes: dict[str, object] = field(default_factory=dict)


def limit_us(problem: Problem, ceilings: dict[str, float]) -> tuple[float, float]:
    """Microseconds that the bytes of the unique KV take, and that the arithmetic takes."""
    bandwidth_us = problem.unique_bytes / (ceilings["copy_TBps"] * 1e6)
    compute_us = problem.flops / (ceilings["bf16_TFLOPs"] * 1e6)
    return bandwidth_us, compute_us


def bytes_moved(problem: Problem, plan: dict | None) -> dict[str, int]:
    """KV, Q, O and partial bytes of a layer; `plan` is the summary of our plan, if there is one."""
    return traffic.split(
        problem.unique_bytes,
        batch=len(problem.q),
        num_qo_heads=problem.num_qo_heads,
        dims=problem.dims,
        element_bytes=problem.dtype.itemsize,
        parts=plan["parts"] * problem.query_rows if plan else 0,
    )


def measure_row(
    problem: Problem, peers: list[str], ceilings: dict[str, float], rounds: int, verbose: bool
) -> dict:
    bandwidth_us, compute_us = limit_us(problem, ceilings)
    limit = max(bandwidth_us, compute_us)
    outcome = Outcome()
    candidates: dict[str, Candidate] = {}
    for peer in peers:
        for candidate in _candidates(peer, problem, limit, outcome, verbose):
            candidates[f"{peer} {candidate.runner.variant}"] = candidate
    samplers = {name: candidate.sampler for name, candidate in candidates.items()}
    calls = {name: candidate.calls for name, candidate in candidates.items()}
    times = timing.measure(samplers, calls, rounds)
    for name, us in times.items():
        _enter(outcome, candidates[name], us, problem)
    row = problem.row
    plan_ms = outcome.notes.pop("plan_ms", None)
    moved = bytes_moved(problem, outcome.notes.get("plan"))
    return {
        "table": row.table,
        "name": row.name,
        "heads": row.heads,
        "dtype": problem.form,
        "batch": row.batch,
        "unique_tokens": problem.unique_tokens,
        "total_tokens": problem.total_tokens,
        **({"window_left": problem.window - 1} if problem.window else {}),
        **({"sinks": True} if problem.sinks is not None else {}),
        **({"query_rows": problem.query_rows} if problem.query_rows > 1 else {}),
        "limit_us": limit,
        "plan_ms": plan_ms,
        "us": outcome.us,
        "err": outcome.err,
        "max_abs_err": outcome.max_abs_err,
        "tree": row.tree,
        "head_dim": problem.head_dim,
        "value_dim": problem.value_dim,
        "slots": problem.slots,
        "layers": problem.layers,
        "calls": outcome.calls,
        "bandwidth_us": bandwidth_us,
        "compute_us": compute_us,
        "bytes": moved,
        "all_bytes_us": sum(moved.values()) / (ceilings["copy_TBps"] * 1e6),
        "unique_bytes": problem.unique_bytes,
        "total_bytes": problem.total_bytes,
        "qo_bytes": problem.qo_bytes,
        "variant": outcome.variant,
        "wrong": outcome.wrong,
        "why": outcome.why,
        **outcome.notes,
    }


def _candidates(
    peer: str, problem: Problem, limit_us: float, outcome: Outcome, verbose: bool
) -> list[Candidate]:
    try:
        candidates = []
        if problem.window and peer in PREFIX_AWARE:
            raise Unsupported("it has no windows")
        if problem.sinks is not None and peer.split()[0] not in WITH_SINKS:
            raise Unsupported("it has no sinks here")
        if problem.query_rows > 1 and peer.split()[0] not in WITH_QUERY_ROWS:
            raise Unsupported("it has one query row per request")
        for runner in ADAPTERS[peer](problem):
            error = problem.errors(runner.run(0), runner.position)
            calls = _calls(runner, problem, limit_us)
            make = timing.make_sampler(problem.device, runner.capturable)
            sampler = make(runner.run, problem.layers, calls)
            candidates.append(Candidate(peer, runner, error, sampler, calls))
            outcome.notes |= runner.notes
        return candidates
    except Unsupported as refusal:
        outcome.why[peer] = str(refusal)
    except Exception as failure:  # a peer may fail in any way: its reason is a result
        if verbose:
            traceback.print_exc()
        reason = " ".join(str(failure).split())[:REASON_LENGTH]
        outcome.why[peer] = f"{type(failure).__name__}: {reason}"
        if not timing.is_alive(problem.device):
            raise DeviceLost(f"{peer}: {outcome.why[peer]}") from failure
    return []


def _calls(runner: Runner, problem: Problem, limit_us: float) -> int:
    if problem.device.type != "cuda":
        return problem.layers
    eager_us = timing.eager_us(runner.run, problem.layers, problem.device)
    calls = timing.calls_per_replay(problem.layers, limit_us, eager_us)
    return calls if runner.capturable else min(calls, timing.QUEUED_CALLS)


def _enter(outcome: Outcome, candidate: Candidate, us: float, problem: Problem) -> None:
    """Record a timed candidate, unless a correct and faster variant of its peer stands."""
    runner, peer = candidate.runner, candidate.peer
    # once more after thousands of replays: state that a kernel keeps between calls must be intact
    again = problem.errors(runner.run(0), runner.position)
    error, max_abs = (_worse(a, b) for a, b in zip(candidate.error, again, strict=True))
    correct = error <= WRONG
    standing = peer in outcome.us and peer not in outcome.wrong
    if standing and (not correct or us >= outcome.us[peer]):
        return
    if peer in outcome.wrong:
        outcome.wrong.remove(peer)
    outcome.us[peer], outcome.err[peer] = us, error
    outcome.max_abs_err[peer] = max_abs
    outcome.calls[peer] = candidate.calls
    if isinstance(candidate.sampler, timing.QueuedSampler):
        outcome.notes[f"{peer}_host_bound"] = candidate.sampler.host_bound
    if runner.variant:
        outcome.variant[peer] = runner.variant
    if not correct:
        outcome.wrong.append(peer)


def _worse(a: float, b: float) -> float:
    return math.inf if math.isnan(a) or math.isnan(b) else max(a, b)
