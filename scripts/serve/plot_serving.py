#!/usr/bin/env python3
"""Draw the JSON of `bench_serving.py`: TPOT against the bound, and codec's gain.

python scripts/serve/plot_serving.py docs/results/serving_h100.json --out docs/results/serving.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from table_serving import Row, backends_of, by_workload, gain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# of the kernel figures, so that a backend looks the same everywhere
_COLOURS = {"codec": "#d62728", "flashinfer": "#1f77b4", "fa3": "#6baed6", "triton": "#b3cde3"}
_OTHER_COLOURS = ("#999999", "#bbbbbb", "#777777")
_LOSS_COLOUR, _WIN_COLOUR = "#d62728", "#4c78a8"
_LOSING = 0.97


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/serving.png"))
    parser.add_argument("--dpi", type=int, default=110)
    return parser


def colours_of(backends: Sequence[str]) -> dict[str, str]:
    """A colour per backend; a pair has that of the backend that decodes."""
    others = iter(_OTHER_COLOURS * len(backends))
    return {backend: _COLOURS.get(backend.split("/")[-1]) or next(others) for backend in backends}


def draw(document: dict[str, Any], path: Path, dpi: int = 110) -> None:
    """Draw all workloads to a PNG file, making the folder if need be."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = by_workload([row for row in document["rows"] if row.get("tpot_ms")])
    groups = groups or by_workload([r for r in document["rows"] if r.get("tpot_ms")], short=True)
    gains = {name: ratio for name, rows in groups.items() if (ratio := gain(rows))}
    panels = 2 if gains else 1
    figure, axes = pyplot.subplots(
        panels,
        1,
        figsize=(3 + 1.5 * max(len(groups), 4), 0.8 + 3.4 * panels),
        squeeze=False,
        layout="constrained",
    )
    about = f"{document['gpu']}, {document['model']}, commit {document['commit'][:10]}"
    figure.suptitle(f"Serving with SGLang {document['versions'].get('sglang', '')} ({about})")
    _draw_times(axes[0, 0], groups)
    if gains:
        _draw_gains(axes[1, 0], gains)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    pyplot.close(figure)


def _draw_times(axes: Axes, groups: dict[str, dict[str, Row]]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    backends = backends_of([row for rows in groups.values() for row in rows.values()])
    colours, width = colours_of(backends), 0.86 / len(backends)
    for i, backend in enumerate(backends):
        offset = (i - (len(backends) - 1) / 2) * width
        places = [x for x, rows in enumerate(groups.values()) if backend in rows]
        times = [rows[backend]["tpot_ms"] for rows in groups.values() if backend in rows]
        where = [x + offset for x in places]
        axes.bar(where, times, width, color=colours[backend], label=backend)
        for x, ms in zip(where, times, strict=True):
            axes.annotate(f"{ms:.1f}", (x, ms), ha="center", va="bottom", fontsize=7)
    bounds = [
        (x, row["bound_ms"])
        for x, rows in enumerate(groups.values())
        for row in list(rows.values())[:1]
        if row.get("bound_ms")
    ]
    if bounds:
        where, limits = zip(*bounds, strict=True)
        ends = [x - 0.45 for x in where], [x + 0.45 for x in where]
        axes.hlines(limits, *ends, color="black", lw=1.6, label="bound")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    lowest = min(row["tpot_ms"] for rows in groups.values() for row in rows.values())
    axes.set_ylim(bottom=min([lowest, *(limit for _, limit in bounds)]) / 1.5)
    axes.set_title("time per output token, ms", loc="left", fontsize=10)
    axes.set_xticks(range(len(groups)), [_label(name, rows) for name, rows in groups.items()])
    axes.legend(
        ncols=len(backends) + 1, fontsize=9, frameon=False, loc="lower right", bbox_to_anchor=(1, 1)
    )
    _grid(axes)


def _draw_gains(axes: Axes, gains: dict[str, float]) -> None:
    ratios = list(gains.values())
    colours = [_LOSS_COLOUR if ratio < _LOSING else _WIN_COLOUR for ratio in ratios]
    # bars grow from 1x: up is faster, down is slower
    axes.bar(range(len(ratios)), [r - 1 for r in ratios], 0.6, bottom=1, color=colours)
    for x, ratio in enumerate(ratios):
        above = ratio >= 1
        axes.annotate(
            f"{ratio:.2f}x",
            (x, ratio),
            xytext=(0, 2 if above else -2),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=9,
        )
    axes.axhline(1, color="#444444", lw=0.8)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.set_ylim(min(0.7, min(ratios) / 1.3), max(1.5, max(ratios) * 1.3))
    axes.set_title("codec: fastest stock backend's TPOT / codec's", loc="left", fontsize=10)
    axes.set_xticks(range(len(gains)), list(gains))
    _grid(axes)


def _grid(axes: Axes) -> None:
    axes.grid(axis="y", which="both", color="#e6e6e6", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", labelsize=8)


def _label(name: str, rows: dict[str, Row]) -> str:
    row = next(iter(rows.values()))
    if "tree" not in row:
        return f"{name}\n{row['request_rate']:g} requests/s"
    return f"{name}\n{row['batch']} x ({row['shared_tokens']:,} + {row['private_tokens']:,})"


def main(argv: Sequence[str] | None = None) -> int:
    """Draw a file."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if not args.json.is_file():
        parser.error(f"{args.json} does not exist")
    document = json.loads(args.json.read_text())
    if not any(row.get("tpot_ms") for row in document["rows"]):
        print(f"{args.json} has no measured row", file=sys.stderr)
        return 1
    draw(document, args.out, args.dpi)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
