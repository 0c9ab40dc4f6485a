#!/usr/bin/env python3
"""Run the kernel tests under NVIDIA's compute-sanitizer and write down what it reports.

memcheck (accesses out of bounds), racecheck (hazards in shared memory) and initcheck (reads of
memory that nothing wrote), each test file in processes of its own, several at a time. torch gives
every tensor an allocation of its own, so that a step out of one is seen; tests that capture graphs
need torch's allocator and keep it. Exit status 0 if every file was done and nothing was reported.

    python scripts/sanitize_kernels.py --json out/sanitizer.json
    python scripts/sanitize_kernels.py --tools memcheck --files tests/kernels/test_por.py \\
        --json out/sanitizer.json
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import psutil
import torch
from bench.results import command, commit, gpu_name, plain, versions
from serving.options import positive_number
from workloads.options import positive

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("memcheck", "racecheck", "initcheck")
FILES = (
    *(f"tests/kernels/test_{name}.py" for name in ("pac", "por", "kv_index", "kv_store")),
    *(f"tests/kernels/test_{name}.py" for name in ("lengths", "growing_tails", "wrapper")),
    "tests/test_cuda_graph.py",
)
SUMMING_UP_S = 20
SUMMARY = re.compile(
    r"^=+ (?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)", re.MULTILINE
)
REPORT = re.compile(
    r"^=+ ((?:Invalid|Uninitialized|Error|Warning: Race|Error: Race|Program hit|Out-of-range).*)$",
    re.MULTILINE,
)
CAPTURES = re.compile(r"CUDAGraph|cuda\.graph")
TESTS = re.compile(r"^(?=.*\b(?:passed|failed|error)).* in [\d.]+s.*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Checked:
    """A test file under a tool.

    Args:
        reports: errors and hazards by the tool's own count; None if it was stopped before it
            summed up.
        tests: pytest's closing line. complete: not stopped for lack of time.
        first: the first reports.
    """

    tool: str
    file: str
    reports: int | None
    tests: str
    seconds: float
    complete: bool
    first: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        passed = "passed" in self.tests and "failed" not in self.tests
        return self.complete and passed and self.reports == 0


def read_output(tool: str, file: str, text: str, seconds: float, stopped: bool) -> Checked:
    """What a run printed, the tool's summary and pytest's."""
    counts = [int(errors or hazards) for errors, hazards in SUMMARY.findall(text)]
    tests = TESTS.findall(text)
    first = tuple(dict.fromkeys(REPORT.findall(text)))[:5]
    closing = tests[-1].strip("= ") if tests else "pytest did not finish"
    reports = sum(counts) if counts else None
    return Checked(tool, file, reports, closing, seconds, not stopped, first)


def check(args: argparse.Namespace, tool: str, file: str, deadline: float) -> Checked:
    """Run one file under one tool, for as long as there is time."""
    stopped, started, log = False, time.monotonic(), args.logs / f"{tool}-{Path(file).stem}.log"
    words = [args.sanitizer, "--tool", tool, "--print-limit", "20"]
    words += [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    environment = dict(os.environ)
    if not CAPTURES.search((ROOT / file).read_text()):
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    with log.open("w") as output:
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(max(deadline - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            stopped = True
            stop(process)
    seconds = time.monotonic() - started
    found = read_output(tool, file, log.read_text(errors="replace"), seconds, stopped)
    print(f"{tool} {file}: {found.reports} reports; {found.tests}", *found.first, flush=True)
    return found


def stop(process: subprocess.Popen) -> None:
    """Interrupt pytest, so that it and the tool sum up what they have; kill what is left."""
    with suppress(psutil.Error, subprocess.TimeoutExpired):
        for child in psutil.Process(process.pid).children():
            child.send_signal(signal.SIGINT)
        process.wait(SUMMING_UP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--files", nargs="+", default=list(FILES), help="test files")
    parser.add_argument("--jobs", type=positive, default=6, help="at a time (default: 6)")
    parser.add_argument(
        "--time-limit", type=positive_number, default=480, metavar="SECONDS", help="of all"
    )
    parser.add_argument("--sanitizer", default="compute-sanitizer", help="the program")
    parser.add_argument("--logs", type=Path, default=Path("out/sanitizer"))
    parser.add_argument("--json", type=Path, required=True, metavar="OUT.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check all files with all tools."""
    args = make_parser().parse_args(argv)
    args.logs.mkdir(parents=True, exist_ok=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + args.time_limit
    with ThreadPoolExecutor(args.jobs) as pool:
        pairs = product(args.tools, args.files)
        jobs = [pool.submit(check, args, tool, file, deadline) for tool, file in pairs]
        rows = [job.result() for job in jobs]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    document = {"gpu": gpu_name(device), "versions": versions(), "commit": commit()}
    document |= {"command": command(), "ok": all(row.is_clean for row in rows)}
    document["runs"] = [asdict(row) for row in rows]
    args.json.write_text(json.dumps(plain(document), indent=1) + "\n")
    return 0 if document["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
