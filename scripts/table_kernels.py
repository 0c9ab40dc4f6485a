#!/usr/bin/env python3
"""Print a benchmark's JSON as Markdown: the summary, or every row.

python scripts/table_kernels.py docs/results/kernels_h100.json --summary
python scripts/table_kernels.py docs/results/kernels_h100.json
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from bench.peers import STOCK

PEERS = ("codec", "flashinfer", "fa3", "triton", "cascade", "fasttree")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", type=Path)
    parser.add_argument("--summary", action="store_true", help="one line per table and heads")
    return parser


def best_stock(row: dict) -> float:
    """Microseconds of the fastest stock backend whose output was right."""
    return min(us for peer, us in row["us"].items() if peer in STOCK and peer not in row["wrong"])


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def summary(rows: list[dict]) -> str:
    """Gain over the best stock backend, distance from the limit, losing rows, error."""
    lines = [
        "| table | heads | rows | faster than the best stock backend | of the limit "
        "| best stock of the limit | rows below 0.97x | worst row | largest error ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    by_heads = sorted(rows, key=lambda r: (r["table"], r["heads"]))
    for (table, heads), group in groupby(by_heads, lambda r: (r["table"], r["heads"])):
        of_table = list(group)
        gains = {row["name"]: best_stock(row) / row["us"]["codec"] for row in of_table}
        worst = min(gains, key=gains.__getitem__)
        ratio = max(
            row["err"]["codec"] / min(e for peer, e in row["err"].items() if peer in STOCK)
            for row in of_table
        )
        limits = [row["us"]["codec"] / row["limit_us"] for row in of_table]
        stock = [best_stock(row) / row["limit_us"] for row in of_table]
        lines.append(
            f"| {table} | {heads} | {len(of_table)} | {geometric_mean(list(gains.values())):.2f}x "
            f"| {geometric_mean(limits):.2f}x | {geometric_mean(stock):.2f}x "
            f"| {sum(gain < 0.97 for gain in gains.values())} | {worst} {gains[worst]:.2f}x "
            f"| {ratio:.2f} |"
        )
    return "\n".join(lines)


def all_rows(rows: list[dict]) -> str:
    """Every row: microseconds of each peer, the limit, the gain and the errors."""
    peers = [peer for peer in PEERS if any(peer in row["us"] for row in rows)]
    lines = [
        "| table | row | tree | heads | batch | limit | "
        + " | ".join(peers)
        + " | gain | plan ms | error, best stock |",
        "|---" * (9 + len(peers)) + "|",
    ]
    for row in rows:
        errors = [e for peer, e in row["err"].items() if peer in STOCK]
        cells = [f"{row['us'][peer]:.1f}" if peer in row["us"] else "-" for peer in peers]
        lines.append(
            f"| {row['table']} | {row['name']} | `{row['tree']}` | {row['heads']} | {row['batch']} "
            f"| {row['limit_us']:.1f} | {' | '.join(cells)} "
            f"| {best_stock(row) / row['us']['codec']:.2f}x | {row['plan_ms']:.2f} "
            f"| {row['err']['codec'] * 1e3:.2f}e-3, {min(errors) * 1e3:.2f}e-3 |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    args = make_parser().parse_args(argv)
    rows = json.loads(args.json.read_text())["rows"]
    print(summary(rows) if args.summary else all_rows(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
