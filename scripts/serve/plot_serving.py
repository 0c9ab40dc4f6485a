#!/usr/bin/env python3
"""Draw the JSON of `bench_serving.py`: TPOT against the bound, and codec's gain.

python scripts/serve/plot_serving.py docs/results/serving_h100.json --out docs/results/serving.png
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from library.figures import gain_bars, grouped_bars, legend, panels, save
from library.options import parser_of
from table_serving import Row, backends_of, by_workload, gain


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw all workloads to a PNG file, making the folder if need be."""
    measured = [row for row in document["rows"] if row.get("tpot_ms")]
    groups = by_workload(measured) or by_workload(measured, short=True)
    gains = {name: ratio for name, rows in groups.items() if (ratio := gain(rows))}
    height = 0.8 + 3.4 * (2 if gains else 1)
    figure, axes = panels(2 if gains else 1, (3 + 1.5 * max(len(groups), 4), height))
    backends = backends_of([row for rows in groups.values() for row in rows.values()])
    series = {b: [rows.get(b, {}).get("tpot_ms") for rows in groups.values()] for b in backends}
    notes = {(b, x): f"{ms:.1f}" for b, own in series.items() for x, ms in enumerate(own) if ms}
    bounds = [next(iter(rows.values())).get("bound_ms") for rows in groups.values()]
    grouped_bars(axes[0], [_label(*group) for group in groups.items()], series, bounds, notes)
    axes[0].set_title("time per output token, ms, and the bound", loc="left", fontsize=10)
    if gains:
        gain_bars(axes[1], list(gains), list(gains.values()))
        axes[1].set_title("codec: fastest stock backend's TPOT / codec's", loc="left", fontsize=10)
    legend(figure)
    about = f"{document['gpu']}, {document['model']}, commit {document['commit'][:10]}"
    save(figure, f"Serving with SGLang {document['versions'].get('sglang', '')} ({about})", path)


def _label(name: str, rows: dict[str, Row]) -> str:
    row = next(iter(rows.values()))
    if "tree" not in row:
        return f"{name}\n{row['request_rate']:g} requests/s"
    return f"{name}\n{row['batch']} x ({row['shared_tokens']:,} + {row['private_tokens']:,})"


def main(argv: Sequence[str] | None = None) -> int:
    """Draw a file."""
    parser = parser_of(__doc__)
    parser.add_argument("json", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/serving.png"))
    args = parser.parse_args(argv)
    if not args.json.is_file():
        parser.error(f"{args.json} does not exist")
    document = json.loads(args.json.read_text())
    if not any(row.get("tpot_ms") for row in document["rows"]):
        parser.error(f"{args.json} has no measured row")
    draw(document, args.out)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
