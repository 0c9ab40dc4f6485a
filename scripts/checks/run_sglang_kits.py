#!/usr/bin/env python3
"""Run SGLang's own test kits, unchanged, with `codec`.

The kits of `sglang.test.kits` that concern decoding, the radix tree and the scheduler: first the
unit tests of attention backends, then those that ask a server, grouped by the server they need. A
test that fails is run again with a stock backend on the same flags: a small model does not know
every capital. Exit status 0 if nothing fails with codec that passes with the stock backend.

    python scripts/checks/run_sglang_kits.py --model .models/smollm2 --json out/sglang_kits.json
    python scripts/checks/run_sglang_kits.py --model MODEL --only "cache_hit;abort_timeout, all" \\
        --json out/sglang_kits.json -- --mem-fraction-static=0.5

An existing JSON file is continued: kits that are run again take the place of their earlier rows.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from kits.catalogue import CPU, DENSE, KITS, NAMES, NOT_RUN, Kit, ServerKind
from kits.dense import Device, dense_case
from kits.outcomes import Outcome, counts
from kits.served import Target
from kits.worker import Worker
from library import results
from library.options import parser_of, positive_number, some_of
from library.servers.backends import gpu_name, has_gpu
from library.servers.launch import make_launch
from library.servers.server import ServerFailed, leave_on_sigterm, reason, running_server

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "LICENSE", ROOT / "docs" / "architecture.md", ROOT / "README.md")
FLAGS = ("--max-running-requests=64", "--cuda-graph-max-bs-decode=64")
# figures that kits print and that are worth keeping
PRINTED = re.compile(r"^(?:avg_kl_div|\s+Overall cache_hit_rate)=.*$", re.MULTILINE)
DENSE_LIMIT_S = 240.0

Found = tuple[list[Outcome], str]  # of a kit, and what it printed


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    epilog = "What stands after `--` are flags of every server."
    parser = parser_of(__doc__, epilog=epilog)
    add = parser.add_argument
    add("--model", required=True, help="a directory with weights and tokenizer")
    add("--backend", default="codec", help="of the servers (default: codec)")
    stock = "backend that failing kits are run on too (default: fa3)"
    add("--stock", default="fa3", help=stock)
    kits = some_of(NAMES, separator=";")
    add("--only", type=kits, default=NAMES, metavar="KIT;...", help="these kits")
    add("--text", type=Path, action="append", help="files with text for prompts")
    add("--json", type=Path, required=True, metavar="OUT.json")
    add("--logs", type=Path, default=Path("out/kits"), help="default: out/kits")
    add("--start-limit", type=positive_number, default=300, metavar="SECONDS")
    add("--time-limit", type=positive_number, default=540, metavar="SECONDS", help="of all kits")
    return parser


@dataclass
class Results:
    """The document, written after every kit."""

    file: Path
    head: dict[str, Any]
    kits: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, file: Path, head: dict[str, Any]) -> Results:
        """Continue what the file has of the same versions and commit."""
        commands = [head.pop("command")]
        earlier = json.loads(file.read_text()) if file.exists() else {}
        if any(earlier.get(name) != head[name] for name in ("versions", "commit")):
            return cls(file, head | {"commands": commands})
        kits = {kit["kit"]: kit for kit in earlier["kits"]}
        return cls(file, head | {"commands": earlier["commands"] + commands}, kits)

    def add(self, kit: str, backend: str, found: Found, where: dict[str, Any]) -> None:
        """What a backend makes of a kit; of the stock one it stands beside codec's."""
        outcomes, printed = found
        row = {"kit": kit, "backend": backend} | where | counts(outcomes)
        row |= {"printed": PRINTED.findall(printed), "tests": [asdict(o) for o in outcomes]}
        if where:
            self.kits[kit] = row
        else:
            self.kits[kit]["stock"] = row
        self.write()
        words = ", ".join(f"{number} {kind}" for kind, number in counts(outcomes).items() if number)
        bad = [f"\n    {o.test}: {o.outcome}: {o.reason}" for o in outcomes if o.is_bad]
        print(f"{kit} with {backend}: {words}{''.join(bad)}", flush=True)

    def bad(self, row: dict[str, Any]) -> list[str]:
        """Tests of a row that did not pass."""
        return [test["test"] for test in row.get("tests", ()) if Outcome(**test).is_bad]

    def failures(self) -> list[str]:
        """Tests that fail with codec and not with the stock backend."""
        return [
            f"{row['kit']}: {test}"
            for row in self.kits.values()
            for test in self.bad(row)
            if test not in self.bad(row.get("stock", {}))
        ]

    def write(self) -> None:
        rows = [self.kits[name] for name in NAMES if name in self.kits]
        missing = [name for name in NAMES if name not in self.kits]
        document = self.head | {"ok": not self.failures() and not missing, "missing": missing}
        document |= {"failures": self.failures(), "not_run": NOT_RUN, "kits": rows}
        results.write(document, self.file)


@dataclass
class Program:
    """All kits that were asked for, within the time."""

    args: argparse.Namespace
    words: Sequence[str]
    results: Results
    worker: Worker
    deadline: float

    def dense(self, name: str, device: Device) -> None:
        """The unit tests of attention backends, which need no server."""
        outcomes = self._run(name, "codec", dense_case, device, {"server": None}, DENSE_LIMIT_S)
        if any(outcome.is_bad for outcome in outcomes):
            stock = replace(device, backend=device.prefill)
            self._run(name, stock.backend, dense_case, stock, {}, DENSE_LIMIT_S)
        # its context would stay on the GPU
        self.worker.close()

    def serve(self, kind: ServerKind, kits: Sequence[Kit]) -> None:
        """Kits of one server, then on a stock server those that failed or are to be compared."""
        args = self.args
        started = self._serve(args.backend, kind, kits)
        rows = self.results.kits
        again = [kit for kit in kits if kit.compare or self.results.bad(rows.get(kit.name, {}))]
        if again and started and args.stock != args.backend:
            self._serve(args.stock, kind, again)

    def _serve(self, backend: str, kind: ServerKind, kits: Sequence[Kit]) -> bool:
        args, folder = self.args, self.args.logs / kind.name.replace(" ", "-")
        launch = make_launch(args, folder, [*FLAGS, *kind.flags, *self.words])
        where = {"server": kind.name, "flags": results.without_paths(launch.flags)}
        where = where | {"variables": kind.variables} if backend == args.backend else {}
        left = list(kits)
        while left and self._left() > 0:
            limit = min(args.start_limit, self._left())
            start = running_server(backend, launch.all_flags, folder, start_limit_s=limit)
            try:
                with _variables(kind.variables), start as server:
                    print(f"{kind.name}, {backend}: up after {server.startup_s:.0f} s", flush=True)
                    text = tuple(args.text or TEXT)
                    target = Target(server.url, server.process.pid, launch.model, text, folder)
                    # a kit that hangs or ends the server is not run again, the others are
                    fit = True
                    while left and fit and self._left() > 0:
                        kit = left.pop(0)
                        found = self._run(kit.name, backend, kit.make, target, where, kit.limit_s)
                        hangs = any(outcome.outcome == "unfinished" for outcome in found)
                        fit = server.is_alive and not hangs
            except ServerFailed as error:
                print(error, flush=True)
                outcome = Outcome("(the server)", "failed", reason=reason(str(error)))
                for kit in left:
                    self.results.add(kit.name, backend, ([outcome], ""), where)
                return False
        return True

    def _run(
        self, kit: str, backend: str, make: Any, target: Any, where: dict[str, Any], limit_s: float
    ) -> list[Outcome]:
        file = kit.replace(", ", "-") + ("" if where else "-stock")
        found = self.worker.run(file, make, target, min(limit_s, max(self._left(), 1)))
        self.results.add(kit, backend, found, where)
        return found[0]

    def _left(self) -> float:
        return self.deadline - time.monotonic()


@contextmanager
def _variables(values: dict[str, str]) -> Iterable[None]:
    """Environment of the servers started inside."""
    saved = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in saved.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the kits, write them down, say what failed."""
    words = list(sys.argv[1:] if argv is None else argv)
    own, server_words = results.split_words(words)
    args = make_parser().parse_args(own)
    args.shape = None  # the kits ask for answers that mean something
    document = Results.of(args.json, results.head(gpu_name(), words))
    worker = Worker(args.logs.resolve())
    deadline = time.monotonic() + args.time_limit
    program = Program(args, server_words, document, worker, deadline)
    try:
        for name in (name for name in DENSE if name in args.only):
            program.dense(name, DENSE[name] if has_gpu() else CPU)
        chosen = [kit for kit in KITS if kit.name in args.only]
        for kind, kits in groupby(chosen, key=lambda kit: kit.server):
            program.serve(kind, list(kits))
    finally:
        worker.close()
    for failure in document.failures():
        print(f"FAILED {failure}")
    missing = [name for name in args.only if name not in document.kits]
    if missing:
        print(f"not run for lack of time: {'; '.join(missing)}")
    return 1 if document.failures() or missing else 0


if __name__ == "__main__":
    leave_on_sigterm()
    sys.exit(main())
