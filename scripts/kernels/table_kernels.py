#!/usr/bin/env python3
"""Print a benchmark's JSON as Markdown: every row, a summary, the targets, or the bytes.

python scripts/kernels/table_kernels.py docs/results/kernels_h100.json --summary
python scripts/kernels/table_kernels.py docs/results/kernels_h100.json --targets
python scripts/kernels/table_kernels.py docs/results/kernels_h100.json

Several reports of one machine can be given; rows of a later one replace those of an earlier one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import targets
from library import results
from library.attention import traffic
from library.attention.peers import ADAPTERS, STOCK
from library.attention.problem import SLOTS
from library.attention.summary import LOSING, best, gain, geometric_mean


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", type=Path, nargs="+")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--summary", action="store_true", help="one line per table and heads")
    what.add_argument("--targets", action="store_true", help="each target, reached or not")
    what.add_argument("--bytes", action="store_true", help="KV, Q, O and partial bytes of each row")
    parser.add_argument("--slots", choices=SLOTS, help="only the rows with such KV slots")
    return parser


def summary(rows: list[dict]) -> str:
    """Gain over the best stock backend, distance from the limit, losing rows, error."""
    slots = _several_slots(rows)
    lines = [
        f"| table | heads |{' slots |' if slots else ''} rows | faster than the best stock backend "
        "| of the limit | best stock of the limit | rows below 0.97x | worst row "
        "| largest error ratio |",
        "|---" * (9 + slots) + "|",
    ]
    rows = [row for row in rows if gain(row) is not None]

    def group_of(row: dict) -> tuple[str, ...]:
        return (row["table"], row["heads"], *([row["slots"]] if slots else []))

    for group, members in groupby(sorted(rows, key=group_of), group_of):
        of_group = list(members)
        gains = {row["name"]: gain(row) for row in of_group}
        worst = min(gains, key=gains.__getitem__)
        ratio = max(row["err"]["codec"] / min(_stock_errors(row)) for row in of_group)
        limits = [row["us"]["codec"] / row["limit_us"] for row in of_group]
        stock = [best(row, STOCK)[1] / row["limit_us"] for row in of_group]
        lines.append(
            f"| {' | '.join(group)} | {len(of_group)} | {geometric_mean(gains.values()):.2f}x "
            f"| {geometric_mean(limits):.2f}x | {geometric_mean(stock):.2f}x "
            f"| {sum(value < LOSING for value in gains.values())} | {worst} {gains[worst]:.2f}x "
            f"| {ratio:.2f} |"
        )
    return "\n".join(lines)


def all_rows(rows: list[dict]) -> str:
    """Every row: microseconds of each peer, the limit, the gain and the errors."""
    peers = [peer for peer in ADAPTERS if any(peer in row["us"] for row in rows)]
    slots = _several_slots(rows)
    lines = [
        f"| table | row | tree | heads |{' slots |' if slots else ''} batch | limit | "
        + " | ".join(peers)
        + " | gain | plan ms | error, best stock |",
        "|---" * (9 + slots + len(peers)) + "|",
    ]
    for row in rows:
        cells = [row["table"], row["name"], f"`{row['tree']}`", row["heads"]]
        cells += [row["slots"]] if slots else []
        cells += [str(row["batch"]), f"{row['limit_us']:.1f}"]
        cells += [_number(row["us"].get(peer), "{:.1f}") for peer in peers]
        cells += [_number(gain(row), "{:.2f}x"), _number(row["plan_ms"], "{:.2f}")]
        errors = [row["err"].get("codec"), min(_stock_errors(row), default=None)]
        cells.append(", ".join(_number(e and e * 1e3, "{:.2f}e-3") for e in errors))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def byte_rows(rows: list[dict]) -> str:
    """Megabytes of each kind, and our time against the limit of KV and of all bytes."""
    lines = [
        "| table | row | heads | batch | KV MB | Q | O | partials written | read | limit of KV, us "
        "| of all bytes, us | codec, us | of the first | of the second |",
        "|---" * 14 + "|",
    ]
    for row in rows:
        split, full, ours = traffic.of_row(row), traffic.full_limit_us(row), best(row, ("codec",))
        if split is None or full is None:
            continue
        cells = [row["table"], row["name"], row["heads"], str(row["batch"])]
        cells += [f"{split[kind] / 1e6:.2f}" for kind in traffic.KINDS]
        cells += [f"{row['limit_us']:.1f}", f"{full:.1f}", _number(ours and ours[1], "{:.1f}")]
        cells += [_number(ours and limit / ours[1], "{:.0%}") for limit in (row["limit_us"], full)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _stock_errors(row: dict) -> list[float]:
    return [error for peer, error in row["err"].items() if peer in STOCK]


def _several_slots(rows: list[dict]) -> bool:
    return len({row.get("slots") for row in rows}) > 1


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    args = make_parser().parse_args(argv)
    _, rows = results.load(args.json)
    rows = [row for row in rows if args.slots in (None, row.get("slots"))]
    if args.targets:
        print(targets.report(rows))
    elif args.bytes:
        print(byte_rows(rows))
    else:
        print(summary(rows) if args.summary else all_rows(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
