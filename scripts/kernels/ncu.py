"""Hardware counters of the kernels of a command, through Nsight Compute (`ncu`)."""

from __future__ import annotations

import csv
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from library import programs

READ = "dram__bytes_read.sum"
WRITE = "dram__bytes_write.sum"
METRICS = (READ, WRITE)
# where CUDA's and the profiler's own installers put it
PLACES = ("/opt/nvidia/nsight-compute/*/ncu", "/usr/local/cuda/bin/ncu")
SCALE = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
# versions differ in how they spell the unit
UNIT_BYTES = {prefix + unit: n for prefix, n in SCALE.items() for unit in ("byte", "B")}
LONGEST_RUN_S = 240
TAIL_LINES = 12  # of a failed command's errors
DENIED = "ERR_NVGPUCTRPERM"
# a kernel that needs several passes runs several times, and finds its own KV in L2 at the second
PASSES = re.compile(r"- (\d+) pass(?:es)?\b")


class CountersUnavailable(Exception):
    """The hardware counters cannot be read here; the message says what to do."""


class RunFailed(Exception):
    """The profiled command, or the profiler on it, failed."""


@dataclass(frozen=True)
class Kernel:
    """One launch: its name, and the value of each metric in bytes."""

    name: str
    metrics: dict[str, float]


def find(given: str | None = None) -> str:
    """The profiler's path.

    Raises:
        CountersUnavailable: it is not installed.
    """
    if found := programs.find("ncu", given, PLACES):
        return found
    raise CountersUnavailable(
        f"{given or 'ncu'} is not installed: DRAM bytes come from hardware counters, which Nsight "
        "Compute reads; install it or give its path with --ncu"
    )


def profile(program: str, command: Sequence[str], log: Path) -> list[Kernel]:
    """Run `command` and read the counters of the launches between its profiler start and stop.

    The caches and the clocks are left as the command leaves them. Where reads and writes do not fit
    into one pass, only reads are counted.

    Raises:
        CountersUnavailable: the counters may not be read.
        RunFailed: the command failed, or launched nothing in its range.
    """
    for metrics in (METRICS, (READ,)):
        text = _run(program, command, log, metrics)
        if passes(text) <= 1:
            return parse(text)
    raise CountersUnavailable(f"{READ} takes {passes(text)} passes on this GPU, which warms its L2")


def passes(text: str) -> int:
    """The most often that the profiler ran a kernel."""
    return max((int(number) for number in PASSES.findall(text)), default=1)


def _run(program: str, command: Sequence[str], log: Path, metrics: Sequence[str]) -> str:
    log.unlink(missing_ok=True)
    profiled = [
        program,
        *("--profile-from-start", "off", "--target-processes", "application-only"),
        *("--cache-control", "none", "--clock-control", "none"),
        *("--metrics", ",".join(metrics), "--csv", "--page", "raw"),
        *("--print-units", "base", "--log-file", str(log)),
        *command,
    ]
    try:
        done = subprocess.run(profiled, capture_output=True, text=True, timeout=LONGEST_RUN_S)
    except subprocess.TimeoutExpired:
        raise RunFailed(f"not done after {LONGEST_RUN_S} s") from None
    text = log.read_text() if log.exists() else ""
    said = "\n".join([text, done.stdout, done.stderr])
    if DENIED in said:
        raise CountersUnavailable(
            f"the driver keeps the hardware counters from this user ({DENIED}): run as root, or "
            "load the driver with NVreg_RestrictProfilingToAdminUsers=0"
        )
    if done.returncode:
        tail = "\n".join([*messages(said), *done.stderr.strip().splitlines()[-TAIL_LINES:]])
        raise RunFailed(f"ncu ended with {done.returncode}:\n{tail}")
    return text


def messages(text: str) -> list[str]:
    """The profiler's own errors and warnings."""
    return [line for line in text.splitlines() if line.startswith(("==ERROR==", "==WARNING=="))]


def parse(text: str) -> list[Kernel]:
    """Launches in the order of the profiler's CSV: a column per metric, units below the heading.

    Raises:
        RunFailed: no launch was profiled.
    """
    lines = text.splitlines()
    heading = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    records = [*csv.DictReader(line for line in lines[heading:] if line.startswith('"'))]
    if len(records) < 2:
        raise RunFailed("\n".join(["ncu profiled no kernel", *messages(text)]))
    units, *launches = records
    return [
        Kernel(
            launch["Kernel Name"],
            {name: _bytes(launch[name], units[name]) for name in METRICS if name in launch},
        )
        for launch in launches
    ]


def _bytes(value: str, unit: str) -> float:
    if unit not in UNIT_BYTES:
        raise RunFailed(f"ncu gave {value!r} {unit!r}, expected bytes")
    return float(value.replace(",", "")) * UNIT_BYTES[unit]
