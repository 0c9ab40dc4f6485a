"""All rows of a run: a server per job, and on each of them a row per workload."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import requests as http
from library.servers.clients import GenerationError, ServerClient
from library.servers.launch import Launch
from library.servers.models import read_config, vocabulary_of
from library.servers.server import Server, ServerFailed, reason, running_server, tail
from library.servers.workload import Arrivals, Workload

from serving.bound import kv_bytes_per_token
from serving.document import Document
from serving.jobs import AnyWorkload, Job
from serving.measure import Target, measure, prepare, settings_of
from serving.places import Place
from serving.steady import NotSteady
from serving.stock_bench import BenchmarkFailed
from serving.workers import Tell, run_jobs

READ_LIMIT_S = 300.0
FAILURES = (GenerationError, NotSteady, BenchmarkFailed, http.RequestException, ValueError)


@dataclass(frozen=True, slots=True)
class Session:
    """Measures what the document lacks.

    Args:
        jobs: in the order of their rows in the document, whichever ends first.
        deadline: `time.monotonic()` after which no row is started.
    """

    document: Document
    launch: Launch
    args: Namespace
    jobs: Sequence[Job]
    deadline: float

    def run(self, places: Sequence[Place]) -> bool:
        """Measure all rows; False if some are missing in the end."""
        if len(places) > 1:
            print(f"{len(places)} servers side by side; cores of each: {len(places[0].cores)}")
        lacking = filter(None, map(self._rest, self.jobs))
        for job in run_jobs(lacking, places, self._work, self._hear):
            print(f"{job.name}: its process ended with an error")
        if missing := [
            f"{workload.name} on {job.name}"
            for job in filter(None, map(self._rest, self.jobs))
            for workload in job.workloads
        ]:
            why = "the time limit is reached, go on with --append" if self._is_late else "see above"
            print(f"not measured ({why}): {', '.join(missing)}")
        return not missing

    def _rest(self, job: Job) -> Job | None:
        """What the document lacks of a job."""
        lacking = tuple(
            workload
            for workload in job.workloads
            if not self.document.has(_identity(job) | settings_of(workload, self.args))
        )
        return replace(job, workloads=lacking) if lacking else None

    def _hear(self, job: Job, place: Place, told: dict[str, Any] | str) -> None:
        if isinstance(told, dict):
            ran_on = {"gpu": place.name, "cores": len(place.cores)}
            self.document.add({"workload": told["workload"]} | _identity(job) | ran_on | told)
            order = {(j.backend, j.variant.name): place for place, j in enumerate(self.jobs)}
            # rows of earlier commands come first
            self.document.rows.sort(key=lambda r: order.get((r["backend"], r["variant"]), -1))
            self.document.write(self.args.json)
        else:
            print(f"GPU {place.name}: {told}" if place.name else told)

    def _work(self, job: Job, _place: Place, tell: Tell) -> None:
        """Runs in a process of its own, and tells rows and lines to print."""
        # a workload that ends the server is not tried again, the others are
        waiting = list(job.workloads)
        flags, folder = [*self.launch.all_flags, *job.variant.flags], self.args.logs / job.folder
        while waiting and not self._is_late:
            try:
                with running_server(
                    job.backend, flags, folder, start_limit_s=self.args.start_limit
                ) as server:
                    tell(f"{job.name}: the server is up after {server.startup_s:.0f} s")
                    self._serve(job, server, waiting, tell)
            except ServerFailed as error:
                for workload in waiting:
                    tell(_failed(workload, str(error)))
                tell(f"{job.name}: {error}")
                return

    def _serve(self, job: Job, server: Server, waiting: list[AnyWorkload], tell: Tell) -> None:
        """Serve what waits, and take it off the list."""
        target = self._target(server)
        # arrivals may come to run all at once
        batches = {w.batch if isinstance(w, Workload) else w.requests for w in waiting}
        prepare(target, self.args, batches)
        while waiting and not self._is_late:
            workload, started = waiting.pop(0), time.monotonic()
            try:
                if isinstance(workload, Arrivals) and not self.launch.text:
                    raise BenchmarkFailed("sglang.bench_serving needs a model with a tokenizer")
                row = measure(workload, target, self.args)
            except FAILURES as error:
                tell(_failed(workload, str(error)))
                tell(f"{job.name}: {workload.name} failed: {error}")
                if not _recovers(server, target.client):
                    tell(tail(server.log))
                    return
                continue
            seconds = time.monotonic() - started
            tell(row | {"seconds": seconds})
            tell(f"{job.name}: {line(row)}; {seconds:.0f} s")

    def _target(self, server: Server) -> Target:
        client = ServerClient(server.url, timeout_s=READ_LIMIT_S)
        model = self.launch.model
        kv_bytes = kv_bytes_per_token(read_config(model), client.info())
        return Target(server, client, model, vocabulary_of(model), kv_bytes)

    @property
    def _is_late(self) -> bool:
        return time.monotonic() > self.deadline


def _identity(job: Job) -> dict[str, Any]:
    return {"backend": job.backend, "variant": job.variant.name}


def _failed(workload: AnyWorkload, why: str) -> dict[str, Any]:
    return {"workload": workload.name, "why": reason(why)}


def _recovers(server: Server, client: ServerClient) -> bool:
    """Whether a server is fit for the next workload after one that failed."""
    try:
        if server.is_alive:
            client.post("/abort_request", {"abort_all": True})
            client.flush()
    except FAILURES:
        return False
    return server.is_alive


def line(row: dict[str, Any]) -> str:
    """A measured row as it is printed while the benchmark runs."""
    parts = [f"{row['workload']}: TPOT {row['tpot_ms']:.2f} ms"]
    if row.get("tpot_scheduler_ms"):
        parts[0] += f" (scheduler {row['tpot_scheduler_ms']:.2f})"
    for name in ("itl_ms", "ttft_ms"):
        parts.append(
            f"{name.removesuffix('_ms').upper()} {row[name]['p50']:.1f} / {row[name]['p99']:.1f}"
        )
    parts.append(f"{row['tokens_per_s']:,.0f} tokens/s")
    if row.get("plans"):
        saved = 1 - row["kv_tokens_read"] / row["kv_tokens_stock"]
        parts.append(f"{saved:.0%} of the KV reads saved")
    parts += [f"{count} x {why}" for why, count in row["fallbacks"].items()]
    return ", ".join(parts + row.get("warnings", []))
