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
import shlex
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
from library.options import positive_number
from library.results import commit, plain, split_words, versions, without_paths
from library.servers.engines import has_gpu
from library.servers.launch import make_launch
from library.servers.server import ServerFailed, leave_on_sigterm, reason, running_server

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "LICENSE", ROOT / "docs" / "architecture.md", ROOT / "README.md")
FLAGS = ("--max-running-requests=64", "--cuda-graph-max-bs-decode=64")
# figures that kits print and that are worth keeping
PRINTED = re.compile(r"^(?:avg_kl_div|\s+Overall cache_hit_rate)=.*$", re.MULTILINE)
DENSE_LIMIT_S = 240.0


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="What stands after `--` are flags of every server.",
    )
    parser.add_argument("--model", required=True, help="a directory with weights and tokenizer")
    parser.add_argument("--backend", default="codec", help="of the servers (default: codec)")
    parser.add_argument(
        "--stock", default="fa3", help="backend that failing kits are run on too (default: fa3)"
    )
    parser.add_argument("--only", type=_kits, default=NAMES, metavar="KIT;...", help="these kits")
    parser.add_argument("--text", type=Path, action="append", help="files with text for prompts")
    parser.add_argument("--json", type=Path, required=True, metavar="OUT.json")
    parser.add_argument("--logs", type=Path, default=Path("out/kits"), help="default: out/kits")
    parser.add_argument("--start-limit", type=positive_number, default=300, metavar="SECONDS")
    parser.add_argument(
        "--time-limit", type=positive_number, default=540, metavar="SECONDS", help="of all kits"
    )
    return parser


def _kits(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(";") if name.strip())
    if unknown := [name for name in names if name not in NAMES]:
        known = "; ".join(NAMES)
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no kit; known are: {known}")
    return names


@dataclass
class Results:
    """The document, written after every kit."""

    file: Path
    head: dict[str, Any]
    kits: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, file: Path, command: str) -> Results:
        """Continue what the file has of the same versions and commit."""
        head = {"versions": versions(), "commit": commit(), "gpu": "cpu", "commands": [command]}
        earlier = json.loads(file.read_text()) if file.exists() else {}
        if any(earlier.get(name) != head[name] for name in ("versions", "commit")):
            return cls(file, head)
        head["commands"] = [*earlier["commands"], command]
        return cls(file, head | {"gpu": earlier["gpu"]}, {k["kit"]: k for k in earlier["kits"]})

    def add(
        self, kit: str, outcomes: Sequence[Outcome], where: dict[str, Any], printed: str
    ) -> None:
        row = {"kit": kit} | where | counts(outcomes)
        row |= {"printed": PRINTED.findall(printed), "tests": [asdict(o) for o in outcomes]}
        self.kits[kit] = row
        self.write()
        print(f"{kit}: {_line(outcomes)}", flush=True)

    def compare(self, kit: str, backend: str, outcomes: Sequence[Outcome], printed: str) -> None:
        """What the stock backend makes of a kit."""
        row = {"backend": backend} | counts(outcomes)
        row |= {"printed": PRINTED.findall(printed), "tests": [asdict(o) for o in outcomes]}
        self.kits[kit]["stock"] = row
        self.write()
        print(f"{kit} with {backend}: {_line(outcomes)}", flush=True)

    def failures(self) -> list[str]:
        """Tests that fail with codec and not with the stock backend."""
        found = []
        for row in self.kits.values():
            also = {t["test"] for t in row.get("stock", {}).get("tests", ()) if _is_bad(t)}
            bad = [t["test"] for t in row["tests"] if _is_bad(t)]
            found += [f"{row['kit']}: {test}" for test in bad if test not in also]
        return found

    def write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        rows = [self.kits[name] for name in NAMES if name in self.kits]
        missing = [name for name in NAMES if name not in self.kits]
        document = self.head | {"ok": not self.failures() and not missing, "missing": missing}
        document |= {"failures": self.failures(), "not_run": NOT_RUN, "kits": rows}
        self.file.write_text(json.dumps(plain(document), indent=1) + "\n")


def _is_bad(test: dict[str, Any]) -> bool:
    return Outcome(**test).is_bad


def _line(outcomes: Sequence[Outcome]) -> str:
    words = ", ".join(f"{number} {kind}" for kind, number in counts(outcomes).items() if number)
    bad = [f"\n    {o.test}: {o.outcome}: {o.reason}" for o in outcomes if o.is_bad]
    return words + "".join(bad)


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
        limit = min(DENSE_LIMIT_S, self._left())
        outcomes, printed = self.worker.run(_file(name), dense_case, device, limit)
        where = {"backend": "codec", "server": None, "device": asdict(device)}
        self.results.add(name, outcomes, where, printed)
        if any(outcome.is_bad for outcome in outcomes):
            stock = replace(device, backend=device.prefill)
            limit = min(DENSE_LIMIT_S, self._left())
            found = self.worker.run(_file(name) + "-stock", dense_case, stock, limit)
            self.results.compare(name, stock.backend, *found)
        # its context would stay on the GPU
        self.worker.close()

    def serve(self, kind: ServerKind, kits: Sequence[Kit]) -> None:
        """Kits of one server, then on a stock server those that failed or are to be compared."""
        args = self.args
        flags = self._serve(args.backend, kind, kits, self._add)
        again = [kit for kit in kits if kit.compare or self._failed(kit)]
        if again and flags and args.stock != args.backend:
            self._serve(args.stock, kind, again, self._compare)

    def _serve(self, backend: str, kind: ServerKind, kits: Sequence[Kit], take: Any) -> bool:
        args, folder = self.args, self.args.logs / kind.name.replace(" ", "-")
        launch = make_launch(_Model(args.model), folder, [*FLAGS, *kind.flags, *self.words])
        left = list(kits)
        while left and self._left() > 0:
            try:
                limit = min(args.start_limit, self._left())
                with (
                    _variables(kind.variables),
                    running_server(
                        backend, launch.all_flags, folder, start_limit_s=limit
                    ) as server,
                ):
                    print(f"{kind.name}, {backend}: up after {server.startup_s:.0f} s", flush=True)
                    text = tuple(args.text or TEXT)
                    target = Target(server.url, server.process.pid, launch.model, text, folder)
                    # a kit that hangs or ends the server is not run again, the others are
                    fit = True
                    while left and fit and self._left() > 0:
                        kit = left.pop(0)
                        found = self._run(kit, target)
                        take(kit, kind, without_paths(launch.flags), found)
                        hangs = any(outcome.outcome == "unfinished" for outcome in found[0])
                        fit = server.is_alive and not hangs
            except ServerFailed as error:
                print(error, flush=True)
                outcome = Outcome("(the server)", "failed", reason=reason(str(error)))
                for kit in left:
                    take(kit, kind, without_paths(launch.flags), ([outcome], ""))
                return False
        return True

    def _run(self, kit: Kit, target: Target) -> tuple[list[Outcome], str]:
        limit = min(kit.limit_s, max(self._left(), 1))
        return self.worker.run(_file(kit.name), kit.make, target, limit)

    def _add(self, kit: Kit, kind: ServerKind, flags: Sequence[str], found: Any) -> None:
        where = {"backend": self.args.backend, "server": kind.name, "flags": list(flags)}
        where |= {"variables": kind.variables}
        self.results.add(kit.name, found[0], where, found[1])

    def _compare(self, kit: Kit, _kind: ServerKind, _flags: Sequence[str], found: Any) -> None:
        self.results.compare(kit.name, self.args.stock, *found)

    def _failed(self, kit: Kit) -> bool:
        row = self.results.kits.get(kit.name, {"tests": ()})
        return any(_is_bad(test) for test in row["tests"])

    def _left(self) -> float:
        return self.deadline - time.monotonic()


def _file(kit: str) -> str:
    return kit.replace(", ", "-")


@dataclass(frozen=True)
class _Model:
    """What `make_launch` reads of a command line."""

    model: str
    shape: None = None


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
    own, server_words = split_words(words)
    args = make_parser().parse_args(own)
    command = shlex.join(without_paths(["run_sglang_kits.py", *words]))
    results = Results.of(args.json, command)
    worker = Worker(args.logs.resolve())
    deadline = time.monotonic() + args.time_limit
    program = Program(args, server_words, results, worker, deadline)
    gpu = has_gpu()
    try:
        for name in (name for name in DENSE if name in args.only):
            program.dense(name, DENSE[name] if gpu else CPU)
        chosen = [kit for kit in KITS if kit.name in args.only]
        for kind, kits in groupby(chosen, key=lambda kit: kit.server):
            program.serve(kind, list(kits))
    finally:
        worker.close()
    if gpu:
        import torch

        results.head["gpu"] = torch.cuda.get_device_name()
    results.write()
    for failure in results.failures():
        print(f"FAILED {failure}")
    missing = [name for name in args.only if name not in results.kits]
    if missing:
        print(f"not run for lack of time: {'; '.join(missing)}")
    return 1 if results.failures() or missing else 0


if __name__ == "__main__":
    leave_on_sigterm()
    sys.exit(main())
