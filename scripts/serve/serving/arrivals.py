"""Rows of requests that arrive one by one: several runs, and the medians of their figures."""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from library.servers.workload import Arrivals

from serving import stock_bench
from serving.busy import Busy
from serving.scheduler_log import read_arrivals

if TYPE_CHECKING:
    from serving.measure import Target


def measure_arrivals(workload: Arrivals, target: Target, args: Namespace) -> dict[str, Any]:
    """The figures of a row: medians, and its `runs`."""
    runs = [_run(workload, target, args, args.seed + number) for number in range(args.repeats)]
    # a digest per request of all runs
    outputs = [digest for run in runs for digest in run.pop("outputs")]
    return median_of(runs) | {"runs": runs, "outputs": outputs}


def _run(workload: Arrivals, target: Target, args: Namespace, seed: int) -> dict[str, Any]:
    target.client.flush()
    log_place = target.server.log_end()
    words = stock_bench.arguments(workload, url=target.server.url, model=target.model, seed=seed)
    with Busy(target.server.process.pid) as busy:
        result = stock_bench.run(words, target.server.log.parent)
    logged = read_arrivals(target.server.log_since(log_place))
    return stock_bench.figures_of(result, args.itl_limit) | {
        "tpot_scheduler_ms": logged and logged.tpot_ms,
        "largest_batch": logged and logged.largest,
        "cuda_graph": logged and logged.graphs,
        "busy": busy.shares,
    }


def median_of(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure, None where a run lacks it."""
    found: dict[str, Any] = {}
    for name in runs[0]:
        values = [run.get(name) for run in runs]
        if isinstance(values[0], dict):
            found[name] = median_of(values)
        else:
            found[name] = None if None in values else statistics.median(values)
    return found
