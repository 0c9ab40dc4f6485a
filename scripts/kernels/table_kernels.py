#!/usr/bin/env python3
"""Print a benchmark's JSON as Markdown: every row, a summary, the targets, or the bytes.

    python scripts/kernels/table_kernels.py docs/results/kernels_h100.json --summary
    python scripts/kernels/table_kernels.py docs/results/kernels_h100.json --targets
    python scripts/kernels/table_kernels.py docs/results/kernels_h100.json

Several reports of one machine can be given; rows of a later one replace those of an earlier one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import targets
from library import results
from library.attention import traffic
from library.attention.peers import ADAPTERS
from library.attention.problem import SLOTS
from library.attention.summary import best, gain, means, several_slots, stock_errors
from library.options import parser_of
from library.results import markdown


def all_rows(rows: list[dict]) -> str:
    """Every row: microseconds of each peer, the limit, the gain and the errors."""
    peers = [peer for peer in ADAPTERS if any(peer in row["us"] for row in rows)]
    slots = ["slots"] if several_slots(rows) else []
    heads = ["table", "row", "tree", "heads", *slots, "batch", "limit", *peers]
    lines = []
    for row in rows:
        cells = [row["table"], row["name"], f"`{row['tree']}`", row["heads"]]
        cells += [row[name] for name in slots]
        cells += [str(row["batch"]), f"{row['limit_us']:.1f}"]
        cells += [_number(row["us"].get(peer), "{:.1f}") for peer in peers]
        cells += [_number(gain(row), "{:.2f}x"), _number(row["plan_ms"], "{:.2f}")]
        errors = [row["err"].get("codec"), min(stock_errors(row), default=None)]
        lines.append([*cells, ", ".join(_number(e and e * 1e3, "{:.2f}e-3") for e in errors)])
    return markdown([*heads, "gain", "plan ms", "error, best stock"], lines)


def byte_rows(rows: list[dict]) -> str:
    """Megabytes of each kind, and our time against the limit of KV and of all bytes."""
    heads = ["table", "row", "heads", "batch", "KV MB", "Q", "O", "partials written", "read"]
    heads += ["limit of KV, us", "of all bytes, us", "codec, us", "of the first", "of the second"]
    lines = []
    for row in rows:
        full, ours = traffic.full_limit_us(row), best(row, ("codec",))
        if full is None:
            continue
        cells = [row["table"], row["name"], row["heads"], str(row["batch"])]
        cells += [f"{row['bytes'][kind] / 1e6:.2f}" for kind in traffic.KINDS]
        cells += [f"{row['limit_us']:.1f}", f"{full:.1f}", _number(ours and ours[1], "{:.1f}")]
        cells += [_number(ours and limit / ours[1], "{:.0%}") for limit in (row["limit_us"], full)]
        lines.append(cells)
    return markdown(heads, lines)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("json", type=Path, nargs="+")
    shows = {"summary": means, "targets": targets.report, "bytes": byte_rows}
    what = parser.add_mutually_exclusive_group()
    for name, help in (
        ("summary", "one line per table and heads"),
        ("targets", "each target, reached or not"),
        ("bytes", "KV, Q, O and partial bytes of each row"),
    ):
        what.add_argument(f"--{name}", dest="show", action="store_const", const=name, help=help)
    parser.add_argument("--slots", choices=SLOTS, help="only the rows with such KV slots")
    args = parser.parse_args(argv)
    _, rows = results.load(args.json)
    print(shows.get(args.show, all_rows)([r for r in rows if args.slots in (None, r.get("slots"))]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
