#!/usr/bin/env python3
"""Plan as many random batches as wanted, let the tests' checker judge every plan, and count.

    python scripts/planner/fuzz_planner.py --jobs 2 --json docs/results/planner_fuzz.json

Every kind of tree, machine and buffers is drawn from a seed of its own. The planner is compiled
with a check of every index. Ends with 1 if a plan was wrong; a fault names the seed that shows it
again: `python tests/support/fuzz_probe.py --seed SEED --plans 1`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

from library import results

ROOT = Path(__file__).resolve().parents[2]
PROBE = ROOT / "tests" / "support" / "fuzz_probe.py"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plans", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first batch")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--part", type=int, default=5000, help="plans of each process")
    parser.add_argument("--json", type=Path, help="where to write the counts")
    return parser


def run_parts(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The reports of processes that share the plans; a batch has one plan at least."""
    # a cache of its own: what is compiled without the checks would be loaded in place of these
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(args.jobs) as pool:
        checked = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
        search = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}

        def run(first: int) -> dict[str, Any]:
            plans = min(args.part, args.plans - first)
            words = ["--plans", str(plans), "--seed", str(args.seed + first)]
            done = subprocess.run(
                [sys.executable, str(PROBE), *words],
                env=os.environ | checked | search,
                stdout=subprocess.PIPE,
                text=True,
            )
            if not done.stdout:
                raise SystemExit(f"{PROBE.name} {' '.join(words)} ended with {done.returncode}")
            return json.loads(done.stdout)

        for part in as_completed(pool.submit(run, n) for n in range(0, args.plans, args.part)):
            yield part.result()


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line per process, and write the sums."""
    args = make_parser().parse_args(argv)
    counts: Counter[str] = Counter()
    faults: list[str] = []
    checked = True
    start = time.perf_counter()
    for part in run_parts(args):
        checked &= part["index_checks"]
        largest = max(counts["largest batch"], part["counts"].get("largest batch", 0))
        counts.update(part["counts"])
        counts["largest batch"] = largest
        faults += part["faults"]
        seconds = time.perf_counter() - start
        print(f"{counts['plans']} plans, {len(faults)} faults, {seconds:.0f} s", flush=True)
    for fault in faults:
        print(fault)
    if args.json:
        head = {"versions": results.versions(), "commit": results.commit()}
        head["versions"]["numba"] = version("numba")
        report = head | {"command": results.command(), "jobs": args.jobs, "index_checks": checked}
        report |= {"seconds": round(seconds, 1), "counts": dict(sorted(counts.items()))}
        args.json.write_text(json.dumps(report | {"faults": faults}, indent=1) + "\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
