"""All rows of a run: one server per backend, one after the other, a row per workload."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import requests as http
from library.servers.clients import GenerationError, ServerClient
from library.servers.launch import Launch
from library.servers.models import read_config, vocabulary_of
from library.servers.server import Server, ServerFailed, reason, running_server, tail
from library.servers.workload import StockWorkload, Workload

from serving.bound import kv_bytes_per_token
from serving.document import Document
from serving.measure import Target, flush, measure, prepare, settings_of
from serving.steady import NotSteady
from serving.stock_bench import BenchmarkFailed

READ_LIMIT_S = 300.0
FAILURES = (GenerationError, NotSteady, BenchmarkFailed, http.RequestException, ValueError)

Say = Callable[[str], None]
AnyWorkload = Workload | StockWorkload


@dataclass
class Session:
    """Measures what the document lacks.

    Args:
        deadline: `time.monotonic()` after which no row is started.
    """

    document: Document
    launch: Launch
    args: Namespace
    deadline: float
    say: Say = print

    def run(self, backends: Sequence[str], workloads: Sequence[AnyWorkload]) -> bool:
        """Measure all rows; False if some are missing in the end."""
        flags = self.launch.all_flags
        for backend in backends:
            # a workload that ends the server is not tried again, the others are
            tried: set[str] = set()
            while pending := [
                w for w in workloads if w.name not in tried and not self._done(backend, w)
            ]:
                if time.monotonic() > self.deadline:
                    break
                try:
                    with running_server(
                        backend, flags, self.args.logs, start_limit_s=self.args.start_limit
                    ) as server:
                        self.say(f"{backend}: the server is up after {server.startup_s:.0f} s")
                        self._serve(backend, server, pending, tried)
                except ServerFailed as error:
                    self._failed(backend, pending, str(error))
                    self.say(f"{backend}: {error}")
                    break
        missing = [
            f"{workload.name} on {backend}"
            for backend in backends
            for workload in workloads
            if not self._done(backend, workload)
        ]
        if missing:
            late = time.monotonic() > self.deadline
            why = "the time limit is reached, go on with --append" if late else "see above"
            self.say(f"not measured ({why}): {', '.join(missing)}")
        return not missing

    def _serve(
        self, backend: str, server: Server, pending: Sequence[AnyWorkload], tried: set[str]
    ) -> None:
        target = self._target(server)
        prepare(target, self.args, {w.batch for w in pending if isinstance(w, Workload)} or {1})
        for workload in pending:
            if time.monotonic() > self.deadline:
                return
            tried.add(workload.name)
            started = time.monotonic()
            try:
                if isinstance(workload, StockWorkload) and not self.launch.text:
                    raise BenchmarkFailed("sglang.bench_serving needs a model with a tokenizer")
                row = measure(workload, target, self.args)
            except FAILURES as error:
                self._failed(backend, [workload], str(error))
                self.say(f"{backend}: {workload.name} failed: {error}")
                if not _recovers(server, target.client):
                    self.say(tail(server.log))
                    return
                continue
            self._add(backend, row | {"seconds": time.monotonic() - started})
            self.say(f"{backend}: {line(row)}; {time.monotonic() - started:.0f} s")

    def _target(self, server: Server) -> Target:
        client = ServerClient(server.url, timeout_s=READ_LIMIT_S)
        model = self.launch.model
        kv_bytes = kv_bytes_per_token(read_config(model), client.info())
        return Target(server, client, model, vocabulary_of(model), kv_bytes)

    def _done(self, backend: str, workload: AnyWorkload) -> bool:
        return self.document.has(settings_of(workload, self.args) | {"backend": backend})

    def _failed(self, backend: str, workloads: Sequence[AnyWorkload], why: str) -> None:
        for workload in workloads:
            self._add(backend, {"workload": workload.name, "why": reason(why)})

    def _add(self, backend: str, row: dict[str, Any]) -> None:
        self.document.add({"workload": row["workload"], "backend": backend} | row)
        self.document.write(self.args.json)


def _recovers(server: Server, client: ServerClient) -> bool:
    """Whether a server is fit for the next workload after one that failed."""
    try:
        if server.is_alive:
            client.post("/abort_request", {"abort_all": True})
            flush(client)
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
