#!/usr/bin/env python3
"""Draw the JSON of `bench_serving.py`: TPOT against the bound, codec's gain, and of arrivals the
99th percentiles and goodput.

python scripts/serve/plot_serving.py docs/results/serving_h100.json --out docs/results/serving.png
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.figures import gain_bars, grouped_bars, legend, panels, save
from library.options import parser_of
from table_serving import Row, backends_of, by_workload, gain

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Groups = dict[str, dict[str, Row]]
# figures of arrivals: title, and the value of a row
ARRIVALS = (
    ("99th percentile of the time between tokens, ms", lambda row: row["itl_ms"]["p99"]),
    ("99th percentile of the time to the first token, ms", lambda row: row["ttft_ms"]["p99"]),
    ("goodput, requests/s (no bar: none)", lambda row: row["goodput"]["requests_per_s"]),
)


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw all workloads to a PNG file, making the folder if need be."""
    measured = [row for row in document["rows"] if row.get("tpot_ms")]
    groups = by_workload(measured) or by_workload(measured, short=True)
    arrivals = by_workload([row for row in measured if "goodput" in row])
    gains = {name: ratio for name, rows in groups.items() if (ratio := gain(rows))}
    count = 1 + bool(gains) + (len(ARRIVALS) if arrivals else 0)
    figure, axes = panels(count, (3 + 1.5 * max(len(groups), 4), 0.8 + 3.4 * count))
    title = "time per output token, ms, and the bound"
    bounds = [next(iter(rows.values())).get("bound_ms") for rows in groups.values()]
    _bars(axes.pop(0), title, groups, lambda row: row["tpot_ms"], bounds)
    if gains:
        axis = axes.pop(0)
        gain_bars(axis, list(gains), list(gains.values()))
        axis.set_title("codec: fastest stock backend's TPOT / codec's", loc="left", fontsize=10)
    for axis, (title, value) in zip(axes, ARRIVALS, strict=False):
        _bars(axis, title, arrivals, value)
    legend(figure)
    about = f"{document['gpu']}, {document['model']}, commit {document['commit'][:10]}"
    save(figure, f"Serving with SGLang {document['versions'].get('sglang', '')} ({about})", path)


def _bars(
    axis: Axes,
    title: str,
    groups: Groups,
    value: Callable[[Row], float],
    bounds: Sequence[float | None] = (),
) -> None:
    backends = backends_of([row for rows in groups.values() for row in rows.values()])
    series = {
        b: [value(rows[b]) if b in rows else None for rows in groups.values()] for b in backends
    }
    notes = {(b, x): f"{v:.1f}" for b, own in series.items() for x, v in enumerate(own) if v}
    grouped_bars(axis, [_label(*group) for group in groups.items()], series, bounds, notes)
    axis.set_title(title, loc="left", fontsize=10)


def _label(name: str, rows: dict[str, Row]) -> str:
    row = next(iter(rows.values()))
    if "request_rate" in row:
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
