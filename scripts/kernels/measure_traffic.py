#!/usr/bin/env python3
"""DRAM bytes that decode attention reads, from hardware counters, beside what it has to read.

    python scripts/kernels/measure_traffic.py --json docs/results/traffic_h100.json
    python scripts/kernels/measure_traffic.py --row "depth 6" --peers codec

Needs a GPU, Nsight Compute (`ncu`) and the right to read counters. For each row the script runs
itself under ncu: every call finds an L2 that holds nothing of its KV, because a large buffer was
read just before. `per request` is what a kernel that knows of no sharing asks for, part of which it
finds in L2; partial results, too, are counted and may be found there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import ncu
import torch
from library import results
from library.attention import tables, timing
from library.attention.measure import WRONG, bytes_moved
from library.attention.peers import ADAPTERS
from library.attention.problem import SLOTS, KVPool, Problem
from library.options import parser_of, some_of
from library.results import markdown

ROWS = (
    ("codec", "batch120k 64", "32/8"),
    ("codec", "depth 6", "32/8"),
    ("fasttree", "FT-7", "32/8"),
    ("pat", "PAT-12", "32/8"),
    ("pat", "PAT-20", "32/8"),
    ("controls", "64_8192", "32/8"),
)
PEERS = ("codec", "flashinfer")
CUDA = torch.device("cuda")
MERGE = "_por_kernel"  # of ours; every other kernel of ours is PAC
REPEATS = 3
FLUSH_BYTES = 2**29  # read before each call; ten times an H100's L2


@dataclass
class Marks:
    """What a profiled child says of its row.

    Args:
        bytes: of a call, as `library.attention.traffic` splits them.
        total_bytes: KV bytes of all requests, each read by itself.
        err: relative error of the output.
    """

    variant: str
    bytes: dict[str, int]
    total_bytes: int
    err: float | None
    plan: dict


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    names = ", ".join(name for _, name, _ in ROWS)
    add("--row", type=select, default=select(""), help=f"one row only: {names}")
    add("--peers", type=some_of(ADAPTERS), default=PEERS, help=f"default: {','.join(PEERS)}")
    add("--slots", choices=SLOTS, default="scattered")
    add("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    add("--ncu", help="path of the profiler")
    add("--json", type=Path)
    add("--child", type=Path, help=argparse.SUPPRESS)  # run one row and peer, write marks here
    return parser


def select(name: str) -> list[tables.Row]:
    """The row of a name, or all."""
    rows = [r for r in tables.all_rows() if (r.table, r.name, r.heads) in ROWS]
    found = [row for row in rows if name in ("", row.name)]
    if not found:
        known = ", ".join(row.name for row in rows)
        raise argparse.ArgumentTypeError(f"no row is called {name!r}: choose from {known}")
    return found


def child(
    row: tables.Row, peer: str, options: argparse.Namespace, device: torch.device = CUDA
) -> None:
    """Run a row's calls between profiler start and stop, and write the marks."""
    pool = KVPool(*[getattr(torch, options.dtype)] * 2, device)
    problem = Problem(row, pool, slots=options.slots, layers=1)
    runner = ADAPTERS[peer](problem)[0]
    error, _ = problem.errors(runner.run(0), runner.position)
    flush = torch.randn(FLUSH_BYTES // 4, device=device)
    profiler = torch.cuda.profiler
    for _ in range(REPEATS):
        flush.sum()
        timing.synchronize(device)
        profiler.start()
        runner.run(0)
        timing.synchronize(device)
        profiler.stop()
    plan = runner.notes.get("plan", {})
    moved = bytes_moved(problem, plan or None)
    marks = Marks(runner.variant, moved, problem.total_bytes, error, plan)
    options.child.write_text(json.dumps(results.plain(asdict(marks))))


def measure(row: tables.Row, peer: str, options: argparse.Namespace, program: str) -> dict:
    """One row and peer: a child under the profiler, its counters beside its marks."""
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder) / "marks.json"
        command = [sys.executable, __file__, "--row", row.name, "--peers", peer]
        command += ["--slots", options.slots, "--dtype", options.dtype, "--child", str(marks)]
        kernels = ncu.profile(program, command, Path(folder) / "ncu.csv")
        if not marks.exists():
            raise ncu.RunFailed("the profiled process ended before it had written its figures")
        facts = Marks(**json.loads(marks.read_text()))
    return entry(row, peer, options, kernels, facts)


def entry(
    row: tables.Row,
    peer: str,
    options: argparse.Namespace,
    kernels: list[ncu.Kernel],
    facts: Marks,
) -> dict:
    """A report's row: bytes per call by kernel, what has to be read, and the ratios."""
    read = per_call(kernels, ncu.READ)
    merge = per_call([k for k in kernels if MERGE in k.name], ncu.READ)
    counts_writes = all(ncu.WRITE in kernel.metrics for kernel in kernels)
    split = facts.bytes
    unique = split["kv"] + split["q"] + split["partial_read"]
    per_request = facts.total_bytes + split["q"]
    return {
        "table": row.table,
        "name": row.name,
        "heads": row.heads,
        "dtype": options.dtype,
        "slots": options.slots,
        "tree": row.tree,
        "batch": row.batch,
        "peer": peer,
        "variant": facts.variant,
        "launches": len(kernels) / REPEATS,
        "read_bytes": read,
        "read_bytes_pac": read - merge if peer == "codec" else None,
        "read_bytes_por": merge if peer == "codec" else None,
        "written_bytes": per_call(kernels, ncu.WRITE) if counts_writes else None,
        "bytes": split,
        "unique_read_bytes": unique,
        "per_request_read_bytes": per_request,
        "of_kv": read / split["kv"],
        "of_unique": read / unique,
        "of_per_request": read / per_request,
        "err": facts.err,
        "wrong": facts.err is None or facts.err > WRONG,  # None: not a number
        "plan": facts.plan,
        "kernels": sorted({kernel.name for kernel in kernels}),
    }


def per_call(kernels: list[ncu.Kernel], metric: str) -> float:
    """Bytes of one call: the launches of `REPEATS` equal calls, added up."""
    return sum(kernel.metrics[metric] for kernel in kernels) / REPEATS


def lines(rows: list[dict]) -> str:
    """Markdown: megabytes per layer."""
    heads = ["row", "heads", "peer", "read MB", "written MB", "KV, each token once"]
    heads += ["with Q and partials", "per request"]
    heads += ["read / KV", "read / all", "read / per request"]
    text = []
    for row in rows:
        wrong = " (wrong output)" if row["wrong"] else ""
        cells = [f"{row['table']} {row['name']}", row["heads"], row["peer"] + wrong]
        sizes = [row["read_bytes"], row["written_bytes"], row["bytes"]["kv"]]
        sizes += [row["unique_read_bytes"], row["per_request_read_bytes"]]
        cells += ["-" if size is None else f"{size / 1e6:.2f}" for size in sizes]
        ratios = ("of_kv", "of_unique", "of_per_request")
        text.append(cells + [f"{row[ratio]:.3f}x" for ratio in ratios])
    return markdown(heads, text)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the rows and print the table; 2 where no counter can be read, 3 if a row failed."""
    options = make_parser().parse_args(argv)
    if options.child:
        child(options.row[0], options.peers[0], options)
        return 0
    try:
        program = ncu.find(options.ncu)
        if not torch.cuda.is_available():
            raise ncu.CountersUnavailable("no CUDA device is visible")
        report = results.Report.of(CUDA, {})
        run(report, options, program)
    except ncu.CountersUnavailable as reason:
        print(f"no DRAM bytes were measured: {reason}", file=sys.stderr)
        return 2
    print(lines(report.rows))
    return 3 if report.skipped else 0


def run(report: results.Report, options: argparse.Namespace, program: str) -> None:
    """Fill the report, and write it after every row and peer."""
    for row, peer in product(options.row, options.peers):
        try:
            report.rows.append(measure(row, peer, options, program))
            print(lines(report.rows[-1:]).splitlines()[-1], flush=True)
        except ncu.RunFailed as failure:
            why = {"table": row.table, "name": row.name, "heads": row.heads, "peer": peer}
            report.skipped.append(why | {"why": str(failure)})
            print(f"{row.table} {row.name} {peer}: {failure}", file=sys.stderr, flush=True)
        if options.json:
            report.write(options.json)


if __name__ == "__main__":
    sys.exit(main())
