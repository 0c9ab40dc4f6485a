#!/usr/bin/env python3
"""Print the JSON of `bench_serving.py` as a Markdown table.

    python scripts/serve/table_serving.py docs/results/serving_h100.json
    python scripts/serve/table_serving.py docs/results/serving_h100.json --short --latency

One line per workload and variant of the server's flags: TPOT of every backend, how many times
faster codec is than the fastest stock backend, the bound, the part of the stock KV reads that codec
saved, and how many requests have the tokens of the first stock backend. `--latency` adds a line per
row, with the goodput of arrivals, the host's time per plan, and each p99 of codec's that is worse
than the best stock backend's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from library.options import parser_of
from library.results import markdown
from library.servers.backends import uses_codec
from library.servers.counters import SECONDS
from serving.jobs import DEFAULT, labelled

Row = dict[str, Any]


def backends_of(rows: Sequence[Row]) -> list[str]:
    """In the order of their first rows, codec before the others."""
    return sorted(dict.fromkeys(row["backend"] for row in rows), key=lambda b: not uses_codec(b))


def by_workload(rows: Sequence[Row], *, short: bool = False) -> dict[str, dict[str, Row]]:
    """Rows by workload, with the variant's name if it is not the default one, and backend."""
    groups: dict[str, dict[str, Row]] = {}
    for row in rows:
        if short or not row["workload"].startswith("short-"):
            name = labelled(row["workload"], row.get("variant", DEFAULT))
            groups.setdefault(name, {})[row["backend"]] = row
    return groups


def gain(rows: dict[str, Row]) -> float | None:
    """TPOT of the fastest stock backend over codec's; None where either is missing."""
    times = {backend: row["tpot_ms"] for backend, row in rows.items() if row.get("tpot_ms")}
    ours = [ms for backend, ms in times.items() if uses_codec(backend)]
    stock = [ms for backend, ms in times.items() if not uses_codec(backend)]
    return min(stock) / min(ours) if ours and stock else None


def table(rows: Sequence[Row], *, short: bool = False) -> str:
    """One line per workload."""
    backends = backends_of(rows)
    heads = ["workload", "requests", "shared + private", *backends, "gain", "bound", "KV read"]
    lines = []
    for name, group in by_workload(rows, short=short).items():
        any_row = next((row for row in group.values() if "why" not in row), {})
        ours = next((row for b, row in group.items() if uses_codec(b) and "why" not in row), {})
        ratio, bound = gain(group), any_row.get("bound_ms")
        cells = [name, *_size(any_row), *(_time(group.get(backend)) for backend in backends)]
        cells += [f"{ratio:.2f}x" if ratio else "-", f"{bound:.1f}" if bound else "-"]
        lines.append([*cells, _read(ours), _same(ours)])
    notes = [
        f"{row['workload']} on {row['backend']}: {text.rstrip('.')}."
        for row in rows
        for text in (*row.get("warnings", []), *([row["why"]] if "why" in row else []))
    ]
    runs = {len(row["runs"]) for row in rows if row.get("runs")}
    medians = [f"Rows of arrivals are medians of {', '.join(map(str, sorted(runs)))} runs."]
    unit = ["", "TPOT in ms.", *(medians if runs - {1} else [])]
    return "\n".join([markdown([*heads, "same tokens"], lines), *unit, *notes])


def worse(row: Row, group: dict[str, Row]) -> list[str]:
    """Each 99th percentile of codec's row that is above the best one of the stock backends."""
    found = []
    for name, shown in (("itl_ms", "ITL"), ("ttft_ms", "TTFT")):
        stock = [r[name]["p99"] for b, r in group.items() if not uses_codec(b) and name in r]
        if uses_codec(row["backend"]) and stock and row[name]["p99"] > min(stock):
            found.append(f"{shown} {row[name]['p99'] / min(stock) - 1:+.1%}")
    return found


def latencies(rows: Sequence[Row], *, short: bool = False) -> str:
    """Every measured row: latencies in milliseconds, throughput, and what codec counted."""
    heads = ["workload", "backend", "TPOT", "of the bound", "ITL p50 / p99", "TTFT p50 / p99"]
    heads += [
        "tokens/s",
        "goodput, requests/s",
        "largest batch, in graphs",
        "plans / steps",
        "ms per plan",
    ]
    heads += ["busiest process but the scheduler", "p99 above the best stock", "fallbacks"]
    lines = []
    for name, group in by_workload(rows, short=short).items():
        for backend, row in group.items():
            if "why" in row:
                continue
            bound = row.get("bound_ms")
            cells = [name, backend, f"{row['tpot_ms']:.2f}"]
            cells += [f"{row['tpot_ms'] / bound:.2f}x" if bound else "-"]
            cells += [f"{row[k]['p50']:.1f} / {row[k]['p99']:.1f}" for k in ("itl_ms", "ttft_ms")]
            cells += [f"{row['tokens_per_s']:,.0f}", _goodput(row), _graphs(row)]
            cells += [f"{row['plans']} / {row['decode_steps']}" if "plans" in row else "-"]
            cells += [_per_plan(row), _busiest(row), ", ".join(worse(row, group)) or "-"]
            cells += ["; ".join(f"{n} x {why}" for why, n in row["fallbacks"].items()) or "-"]
            lines.append(cells)
    return markdown(heads, lines)


def _size(row: Row) -> tuple[str, str]:
    requests = str(row.get("batch") or row.get("requests", "-"))
    if "shared_tokens" not in row:
        return requests, "-"
    return requests, f"{row['shared_tokens']:,} + {row['private_tokens']:,}"


def _time(row: Row | None) -> str:
    if row is None:
        return "-"
    return "failed" if "why" in row else f"{row['tpot_ms']:.1f}"


def _goodput(row: Row) -> str:
    if not (found := row.get("goodput")):
        return "-"
    return f"{found['requests_per_s']:.1f} ({found['share']:.0%})"


def _graphs(row: Row) -> str:
    largest, graphs = row.get("largest_batch") or row.get("batch"), row.get("cuda_graph")
    return f"{largest or '-'}, {'-' if graphs is None else format(graphs, '.0%')}"


def _busiest(row: Row) -> str:
    """But for the scheduler, which always is: it looks for work when there is none."""
    shares = {name: share for name, share in (row.get("busy") or {}).items() if share is not None}
    shares.pop("scheduler", None)
    name = max(shares, key=shares.__getitem__, default="")
    return f"{name} {shares[name]:.0%}" if name else "-"


def _per_plan(row: Row) -> str:
    if not row.get("plans"):
        return "-"
    each = {k.removesuffix(SECONDS): v for k, v in row.items() if k.endswith(SECONDS)}
    return ", ".join(f"{name} {1e3 * s / row['plans']:.2f}" for name, s in each.items())


def _read(row: Row) -> str:
    if not row.get("kv_tokens_stock"):
        return "-"
    return f"{row['kv_tokens_read'] / row['kv_tokens_stock']:.0%}"


def _same(row: Row) -> str:
    same = row.get("same_outputs")
    return f"{same['identical']} of {same['compared']} ({same['reference']})" if same else "-"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("json", type=Path)
    also = "also the rows that only the bounds need"
    parser.add_argument("--short", action="store_true", help=also)
    second = "a second table: every row with its latencies and throughput"
    parser.add_argument("--latency", action="store_true", help=second)
    args = parser.parse_args(argv)
    if not args.json.is_file():
        parser.error(f"{args.json} does not exist")
    rows = json.loads(args.json.read_text())["rows"]
    print(table(rows, short=args.short))
    if args.latency:
        print(f"\n{latencies(rows, short=args.short)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
