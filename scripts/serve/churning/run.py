"""A churn from the first request to the last check."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import requests as http
from library.servers.clients import GenerationError, ServerClient
from library.servers.counters import codec_counters, increase

from churning import checks
from churning.client import Served
from churning.memory import Memory, measure
from churning.rounds import Round, serve_alone
from churning.stock_test import run_stock_test
from churning.traffic import Scale, Traffic


@dataclass
class Run:
    """One server under churn.

    Args:
        log: of the server, None if it cannot be read.
    """

    args: argparse.Namespace
    url: str
    vocabulary: int
    log: Path | None
    say: Callable[[str], None] = print
    served: list[Served] = field(default_factory=list)
    levels: list[int | None] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    stock_test: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.client = ServerClient(self.url, timeout_s=120)
        self._log_start = self.log.stat().st_size if self.log else 0

    def run(self) -> dict[str, Any]:
        """Everything; what the JSON file says of it."""
        started = time.monotonic()
        self._flush()
        before = codec_counters(self.client.info())
        lost, alone = "", []
        try:
            if self.args.stock_test:
                self._run_stock_test()
            self._churn()
            alone = self._serve_alone()
            # the counters of a server that is lost are lost with it
            counters = increase(before, codec_counters(self.client.info())) or None
        except GenerationError as error:
            lost, counters = str(error), None
        return self._result(counters, alone, lost, time.monotonic() - started)

    def _run_stock_test(self) -> None:
        self.stock_test = run_stock_test(self.url, self.args.seed)
        said = self.stock_test["error"] or "passed"
        self.say(f"run_radix_attention_test: {said}, {self.stock_test['seconds']:.0f} s")
        self._flush()

    def _churn(self) -> None:
        args = self.args
        minutes = args.minutes or (float("inf") if args.requests else 10)
        deadline = time.monotonic() + 60 * minutes
        traffic = Traffic(args.seed, Scale(self.vocabulary, args.prompt, args.output))
        left = args.requests or float("inf")
        while left > 0 and time.monotonic() < deadline:
            turn = Round(
                self.url,
                traffic,
                args.concurrency,
                int(min(args.round, left)),
                deadline,
                args.seed + len(self.levels),
            )
            began = time.monotonic()
            served = turn.run()
            self.served += served
            left -= len(served)
            self._flush()
            speed = len(served) / (time.monotonic() - began)
            self.say(f"{len(self.served)} requests, {speed:.1f}/s, {self.memory[-1].words}")
            if any(s.error for s in served):
                return

    def _flush(self) -> None:
        self.client.flush()
        self.levels.append(_tokens_in_use(self.url))
        self.memory.append(measure(self.url))

    def _serve_alone(self) -> list[tuple[Served, Served]]:
        complete = [s for s in self.served if s.is_complete]
        chosen = random.Random(self.args.seed).sample(complete, min(self.args.alone, len(complete)))
        asks = [replace(s.ask, name=f"alone-{number:06}") for number, s in enumerate(chosen)]
        return list(zip(chosen, serve_alone(self.url, asks), strict=True))

    def _result(
        self,
        counters: dict[str, Any] | None,
        alone: list[tuple[Served, Served]],
        lost: str,
        seconds: float,
    ) -> dict[str, Any]:
        args, log = self.args, None
        if self.log is not None:
            log = self.log.read_bytes()[self._log_start :].decode(errors="replace")
        # the first round brings in what is loaded or compiled at first use
        grown = self.memory[-1].growth(self.memory[min(1, len(self.memory) - 1)])
        found = [
            checks.Check("the server answers", not lost, lost or "until the end"),
            checks.no_error(self.served),
            checks.clean_log(log),
            checks.flushed(self.levels),
            checks.planned(counters),
            checks.no_fallback(counters),
            checks.no_growth("host", grown.host),
            checks.no_growth("device", grown.device),
        ]
        if alone:
            found.append(checks.same_alone(alone, required=args.require_equal))
        if self.stock_test:
            error = self.stock_test["error"]
            found.append(checks.Check("run_radix_attention_test", not error, error or "passed"))
        return {
            "seed": args.seed,
            "traffic": {"prompt": args.prompt, "output": args.output, "vocabulary": self.vocabulary}
            | {"concurrency": args.concurrency, "requests_between_flushes": args.round},
            "seconds": seconds,
            "requests": len(self.served),
            "output_tokens": sum(len(s.output_ids) for s in self.served),
            "aborted": sum(s.aborted for s in self.served),
            "retractions": checks.retractions(log, self.served),
            "flushes": len(self.levels) - 1,
            "tokens_in_use_after_flush": self.levels,
            "host_mib": [memory.host for memory in self.memory],
            "device_mib": [memory.device for memory in self.memory],
            "codec": counters,
            "stock_test": self.stock_test,
            "checks": [asdict(check) for check in found],
            "ok": all(check.holds is not False for check in found),
        }


def _tokens_in_use(url: str) -> int | None:
    """KV tokens that SGLang counts as used; None if this release does not tell."""
    answer = http.get(f"{url}/v1/loads", timeout=30)
    loads = answer.json().get("loads") if answer.ok else None
    return sum(load["num_used_tokens"] for load in loads) if loads else None
