"""Runs a workload on every backend and measures it."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from library.servers.clients import Client, Completion, OnToken, Request, Sampling
from library.servers.engines import openings
from library.servers.sharing import Sharing, read_sharing
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

REFERENCE_TOP_LOGPROBS = 2


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that were served together."""

    label: str
    wall_s: float
    completions: tuple[Completion, ...]

    @property
    def output_tokens(self) -> int:
        return sum(len(completion.output_ids) for completion in self.completions)


@dataclass(slots=True)
class BackendRun:
    """One backend's batches and the figures that follow from them."""

    backend: str
    startup_s: float | None
    batches: list[Batch] = field(default_factory=list)
    sharing: Sharing | None = None

    @property
    def completions(self) -> list[Completion]:
        return [completion for batch in self.batches for completion in batch.completions]

    @property
    def wall_s(self) -> float:
        return sum(batch.wall_s for batch in self.batches)

    @property
    def output_tokens(self) -> int:
        return sum(batch.output_tokens for batch in self.batches)

    @property
    def tokens_per_s(self) -> float:
        return self.output_tokens / self.wall_s if self.wall_s else 0.0

    @property
    def prompt_tokens(self) -> int:
        return sum(len(completion.request.input_ids) for completion in self.completions)

    @property
    def cached_tokens(self) -> int:
        return sum(completion.cached_tokens for completion in self.completions)

    @property
    def mean_tpot_ms(self) -> float | None:
        """Mean over requests of the time per output token after the first."""
        times = [completion.seconds_per_token() for completion in self.completions]
        known = [seconds for seconds in times if seconds is not None]
        return 1000 * sum(known) / len(known) if known else None


@dataclass(frozen=True, slots=True)
class Session:
    """One backend while a workload uses it: serves batches and records them."""

    client: Client
    sampling: Sampling
    run: BackendRun
    on_token: OnToken

    def warm_up(self, request: Request) -> None:
        """Serve a request that no figure counts: its prompt is in the radix tree afterwards."""
        self.client.generate([request], self.sampling)

    def serve(self, label: str, requests: Sequence[Request]) -> list[Completion]:
        """Serve requests together as one batch of the results."""
        started = time.perf_counter()
        completions = self.client.generate(requests, self.sampling, self.on_token)
        wall_s = time.perf_counter() - started
        self.run.batches.append(Batch(label, wall_s, tuple(completions)))
        return completions


def sampling_of(args: argparse.Namespace, *, always_logprobs: bool = False) -> Sampling:
    """Sampling as the options say; a workload that scores needs logprobs in any case."""
    wanted = args.logprobs or always_logprobs
    return Sampling(REFERENCE_TOP_LOGPROBS if wanted else 0)


def run_backends(
    args: argparse.Namespace,
    sampling: Sampling,
    expected_tokens: int,
    workload: Callable[[Session], None],
    console: Console,
) -> list[BackendRun]:
    """The same workload on every backend that the options name."""
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} tokens"),
        TimeElapsedColumn(),
    )
    runs: list[BackendRun] = []
    with tempfile.TemporaryDirectory(prefix="sglang-codec-") as directory:
        for opening in openings(args, Path(directory)):
            quiet = not console.is_terminal
            with Progress(*columns, console=console, disable=quiet) as progress:
                task = progress.add_task("starting", total=expected_tokens)
                with opening as target:
                    progress.update(task, description=target.name)
                    run = BackendRun(target.name, target.startup_s)
                    count = partial(progress.advance, task)
                    workload(Session(target.client, sampling, run, count))
                    readings = [read_sharing(target.dump)]
                progress.update(task, total=progress.tasks[0].completed)
            # the backend rewrites its file now and then: whichever copy saw more steps
            readings.append(read_sharing(target.dump))
            run.sharing = max(filter(None, readings), key=lambda s: s.steps, default=None)
            runs.append(run)
    return runs
