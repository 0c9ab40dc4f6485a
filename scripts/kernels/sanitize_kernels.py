#!/usr/bin/env python3
"""Run a few small kernel tests under NVIDIA's compute-sanitizer and write down what it says.

    python scripts/kernels/sanitize_kernels.py
    python scripts/kernels/sanitize_kernels.py --tools memcheck --json out.json

Needs a GPU and the CUDA toolkit. The tests run once without the sanitizer first, which compiles
the kernels and shows that they pass. Every tool then has its own time limit; the report is written
after each, so an interrupted run leaves what it had. Ends with 0 only if every tool ran to its end
and reported nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from library import programs, results
from library.options import parser_of, some_of

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = ("memcheck", "racecheck", "initcheck")
PLACES = ("/usr/local/cuda/bin/compute-sanitizer", "/usr/local/cuda-*/bin/compute-sanitizer")
KERNELS = "tests/kernels"
# every kernel, in shapes that take seconds under the sanitizer
CASES = (
    "test_bodies.py",
    "test_kv_index.py::test_runs_are_gathered_from_the_rows_of_the_pool",
    "test_kv_index.py::test_rows_beyond_what_a_plan_may_have_are_left_alone",
    "test_kv_store.py::test_only_the_slots_of_the_rows_are_written[torch.int64-8-128-33]",
    "test_kv_store.py::test_only_the_slots_of_the_rows_are_written[torch.int32-3-16-5]",
    "test_lengths.py::test_every_task_is_as_long_as_its_rows_are_now[1-chunks]",
    "test_lengths.py::test_every_task_is_as_long_as_its_rows_are_now[14-bundles]",
    "test_por.py::test_any_number_of_parts[33]",
    "test_por.py::test_any_number_of_heads[2-5]",
    "test_por.py::test_padding_may_exceed_what_the_plan_has_room_for",
    "test_por.py::test_rows_beyond_the_output_are_not_written",
    "test_growing_tails.py::test_an_eager_batch_may_be_padded_beyond_the_buffers",
)
OPTIONS = {
    # what the driver refuses while libraries look for its features is no fault of a kernel
    "memcheck": ("--report-api-errors", "no"),
    # it does not see what cuBLAS writes, and reports who reads it: all reports, to tell them apart
    "initcheck": ("--print-limit", "1000000"),
}
# racecheck does not follow an mbarrier that one thread arrives at for a warpgroup which has met at
# a `bar.sync` before (PTX: st.shared, bar.sync, mbarrier.arrive; mbarrier.try_wait, ld.shared): it
# reports every hand-over of the Hopper body, and needs more than five minutes for it
LEFT_OUT = {"racecheck": "(warp or growing_tails)"}
TIMEOUT_S = 300
MOST_FINDINGS, MOST_SAID = 20, 3000
NONE = "no sanitizer"
# an allocation of its own for every tensor: in a shared block the end of one is the next
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONUNBUFFERED": "1"}

_PREFIX = "========= "
_SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard")
_PASSED, _FAILED = re.compile(r"(\d+) passed"), re.compile(r"(\d+) (?:failed|error)")
_REPORT = re.compile(
    r"(Invalid|Misaligned|Uninitialized|Race |Error:|Warning:|Barrier|Program hit)"
)
_KERNEL = re.compile(r"\bat (\S.*?)\+0x")
_FOREIGN = re.compile(r"\| .*(\bat::native\b|\bcublas|\bcutlass)")


@dataclass
class Outcome:
    """What one tool said.

    Args:
        errors: as its summary counts them, or None if it did not come to a summary.
        foreign: those of them that are in kernels of other libraries.
        findings: its first reports, each with the kernel and how often it came.
        stopped: why it is not done, else empty.
        said: the end of the tests' output, if not all is well.
    """

    tool: str
    command: str
    passed: int = 0
    failed: int = 0
    errors: int | None = None
    foreign: int = 0
    findings: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    stopped: str = ""
    said: str = ""

    @property
    def is_clean(self) -> bool:
        ran = self.passed > 0 and not self.failed and not self.stopped
        return ran and self.errors == self.foreign

    @property
    def verdict(self) -> str:
        """One line."""
        errors = "no summary" if self.errors is None else f"{self.errors - self.foreign} errors"
        errors += f" (and {self.foreign} in other libraries)" if self.foreign else ""
        said = f"{errors}, {self.passed} tests passed, {self.failed} failed, {self.seconds:.0f} s"
        word = "clean" if self.is_clean else "not done" if self.stopped else "NOT CLEAN"
        first = next(iter(self.findings), "")
        more = [part for part in (self.stopped, f"first: {first}" if first else "") if part]
        return f"{self.tool}: {word} ({'; '.join([said, *more])})"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    tools = some_of((*TOOLS, "synccheck"))
    add("--tools", type=tools, default=TOOLS, help=f"default: {','.join(TOOLS)}; also synccheck")
    add("--cases", nargs="+", help=f"test ids below {KERNELS}, in place of the chosen ones")
    add("--timeout", type=float, default=TIMEOUT_S, help="seconds for each tool")
    add("--sanitizer", help="path of compute-sanitizer")
    add("--json", type=Path, default=REPOSITORY / "out/sanitizer.json")
    return parser


def run_tool(tool: str, prefix: Sequence[str], cases: Sequence[str], timeout: float) -> Outcome:
    """The cases under one tool; `prefix` is empty for none."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        tests = [f"{KERNELS}/{case}" for case in cases]
        pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        if tool in LEFT_OUT:
            pytest += ["-k", f"not {LEFT_OUT[tool]}"]
        options = ("--tool", tool, *OPTIONS.get(tool, ()), "--log-file", str(log))
        sanitizer = [*prefix, *options] if prefix else []
        shown = shlex.join(results.without_paths([*sanitizer, "python", *pytest[1:]]))
        began = time.monotonic()
        status, said = _run([*sanitizer, *pytest], timeout)
        outcome = parse(tool, shown, said, log.read_text(errors="replace") if log.exists() else "")
        outcome.seconds = time.monotonic() - began
    if status is None:
        outcome.stopped = f"stopped after {timeout:.0f} s"
    elif not outcome.passed and not outcome.failed:
        outcome.stopped = f"no test ran, status {status}"
    elif not prefix:
        outcome.errors = 0
    elif outcome.errors is None:
        outcome.stopped = f"ended with {status} before its summary"
    if not outcome.is_clean:
        outcome.said = said[-MOST_SAID:]
    return outcome


def parse(tool: str, command: str, said: str, log: str) -> Outcome:
    """Counts of pytest's output and of the sanitizer's log, complete or not."""
    # dots are all there is if pytest did not come to its last line
    dots = sum(line.count(".") for line in re.findall(r"^[.FEsx]+(?=\s|$)", said, re.MULTILINE))
    passed, failed = _PASSED.findall(said), _FAILED.findall(said)
    lines = log.splitlines()
    findings: Counter[str] = Counter()
    for at, line in enumerate(lines):
        if _REPORT.match(text := line.removeprefix(_PREFIX).strip()) and line.startswith(_PREFIX):
            kernel = next((m[1] for near in lines[at : at + 3] if (m := _KERNEL.search(near))), "?")
            findings[f"{re.sub(r'0x[0-9a-f]+', '0x', text)} | {kernel}"] += 1
    summary = _SUMMARY.search(log)
    return Outcome(
        tool,
        command,
        passed=int(passed[-1]) if passed else dots,
        failed=sum(map(int, failed[-1:])),
        errors=int(summary[1] or summary[2]) if summary else None,
        foreign=sum(n for what, n in findings.items() if _FOREIGN.search(what)),
        findings=dict(findings.most_common(MOST_FINDINGS)),
    )


def _run(command: Sequence[str], timeout: float) -> tuple[int | None, str]:
    """Status and output of a command with all that it starts; no status if it took too long."""
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        child = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=os.environ | ENVIRONMENT,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = child.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            status = None
        said.seek(0)
        return status, said.read()


def main(argv: Sequence[str] | None = None) -> int:
    options = make_parser().parse_args(argv)
    sanitizer = programs.find("compute-sanitizer", options.sanitizer, PLACES)
    if sanitizer is None:
        print(
            "compute-sanitizer is not installed: it comes with the CUDA toolkit; install that or "
            "give its path with --sanitizer"
        )
        return 2
    if not torch.cuda.is_available():
        print("there is no CUDA GPU: the sanitizer checks what runs on one")
        return 2
    report = results.Report.of(torch.device("cuda"), {})
    report.versions["compute-sanitizer"] = _version(sanitizer)
    cases = options.cases or CASES
    # once without: it compiles the kernels
    for tool in (NONE, *options.tools):
        outcome = run_tool(tool, [] if tool == NONE else [sanitizer], cases, options.timeout)
        print(outcome.verdict, flush=True)
        report.rows.append(asdict(outcome) | {"tests": list(cases), "clean": outcome.is_clean})
        report.write(options.json)
        if tool == NONE and not outcome.is_clean:
            print(outcome.said)
            break
    return 0 if all(row["clean"] for row in report.rows) else 1


def _version(sanitizer: str) -> str:
    done = subprocess.run([sanitizer, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"[Vv]ersion (\S+)", done.stdout)
    return found[1] if found else "unknown"


if __name__ == "__main__":
    sys.exit(main())
