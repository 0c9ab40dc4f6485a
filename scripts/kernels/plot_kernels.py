#!/usr/bin/env python3
"""Draw a report of `bench_kernels.py`: times per table, and gains over all.

    python scripts/kernels/plot_kernels.py out/kernels.json --out docs/results
    python scripts/kernels/plot_kernels.py out/fp8.json out/sinks.json --by-shape --out shapes.png

Several reports of one machine can be given; rows of a later one replace those of an earlier one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from library import figures, results
from library.attention.problem import SLOTS
from library.attention.summary import LOSING, STOCK, best, gain, geometric_mean, grouped
from library.options import parser_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS_PER_PANEL, PANEL_WIDTH = 40, 17.0


def draw(
    paths: list[Path],
    out: Path,
    dpi: int = 110,
    only: str | None = None,
    *,
    by_shape: bool = False,
    launched: Sequence[str] = (),
) -> list[Path]:
    """Write the figures of some reports into the folder `out`; of one layout of KV slots.

    With `by_shape` one figure, `out`: the gains, a panel for each attention shape. Rows that have a
    time of a launch configuration in `launched` show that for codec's.
    """
    head, rows = results.load(paths)
    rows = [row for row in rows if only in (None, row.get("slots"))]
    for row, config in ((row, config) for row in rows for config in launched):
        if (peer := f"codec {config}") in row["us"]:
            row["us"]["codec"] = row["us"].pop(peer)
    if by_shape:
        figure = gains_figure([row for row in rows if gain(row) is not None], shape_of)
        codec = f"codec as {' or '.join(launched)}" if launched else "codec"
        title = f"{codec} against the best stock backend ({head['gpu']})"  # of several commits
        return [figures.save(figure, title, out, dpi)]
    layouts = grouped(rows, lambda row: (row["dtype"], row.get("slots", "")))
    written = []
    for (dtype, slots), members in layouts.items():
        suffix = "" if len(layouts) == 1 else f"-{dtype}-{slots}"
        about = f"{head['gpu']}, {dtype}, {slots} KV slots, commit {head['commit'][:10]}"
        for name, (title, figure) in _figures(members):
            path = out / f"kernels-{name}{suffix}.png"
            written.append(figures.save(figure, f"{title} ({about})", path, dpi))
    return written


def _figures(rows: list[dict]) -> list[tuple[str, tuple[str, Figure]]]:
    drawn = []
    for table, members in grouped(rows, lambda row: row["table"]).items():
        measured = [row for row in members if row["us"]]
        drawn.append((table, (f"{table}: time per layer", times_figure(measured))))
    if won := [row for row in rows if gain(row) is not None]:
        drawn.append(("gain", ("codec against the best stock backend", gains_figure(won))))
    return drawn


def _panels(members: dict[str, list[dict]]) -> tuple[Figure, list[tuple[str, list[dict], Axes]]]:
    figure, axes = figures.panels(len(members), (PANEL_WIDTH, 1.2 + 3.5 * len(members)))
    return figure, [(*entry, axis) for entry, axis in zip(members.items(), axes, strict=True)]


def times_figure(rows: list[dict]) -> Figure:
    """Grouped bars of microseconds per layer, one panel per head configuration."""
    found = dict.fromkeys(peer for row in rows for peer in row["us"])
    peers = sorted(found, key=lambda peer: [*figures.COLOURS, *found].index(peer))
    figure, drawn = _panels(grouped(rows, lambda row: row["heads"]))
    for heads, members, axis in drawn:
        series = {peer: [row["us"].get(peer) for row in members] for peer in peers}
        wrong = {(peer, x): "wrong" for x, row in enumerate(members) for peer in row["wrong"]}
        limits = [row["limit_us"] for row in members]
        figures.grouped_bars(axis, [row["name"] for row in members], series, limits, wrong)
        axis.set_ylabel("µs per layer")
        axis.set_title(f"{heads} query / KV heads", loc="left", fontsize=10)
    figures.legend(figure)
    return figure


def shape_of(row: dict) -> str:
    """The attention shape of a row, in words."""
    dims = dict.fromkeys((row["head_dim"], row["value_dim"]))
    words = [f"{row['heads']} heads of {'/'.join(map(str, dims))}", row["dtype"]]
    if row.get("query_rows", 1) > 1:
        words.append(f"{row['query_rows']} queries a request")
    if "window_left" in row:
        words.append(f"window of {row['window_left'] + 1}")
    return ", ".join(words) + (", sinks" if row.get("sinks") else "")


def gains_figure(rows: list[dict], key: Callable[[dict], str] = itemgetter("table")) -> Figure:
    """`codec` over the best stock backend, row by row, in panels; what loses is marked."""
    parts: dict[str, list[dict]] = {}
    for table, members in grouped(rows, key).items():
        ratios = [gain(row) for row in members]
        losing = sum(ratio < LOSING for ratio in ratios)
        about = f"geometric mean {geometric_mean(ratios):.2f}x"
        about += f", {losing} of {len(ratios)} rows below {LOSING}x"
        pages = -(-len(members) // ROWS_PER_PANEL)
        size = -(-len(members) // pages)
        for page in range(pages):
            part = f"{table} ({page + 1} of {pages})" if pages > 1 else table
            parts[f"{part}: {about}"] = members[page * size : (page + 1) * size]
    figure, drawn = _panels(parts)
    for title, members, axis in drawn:
        several = len({row["heads"] for row in members}) > 1
        names = [f"{row['name']} {row['heads']}" if several else row["name"] for row in members]
        possible = [best(row, STOCK)[1] / row["limit_us"] for row in members]
        figures.gain_bars(axis, names, [gain(row) for row in members], possible)
        axis.set_ylabel("speed-up")
        axis.set_title(title, loc="left", fontsize=10)
    figures.legend(figure)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Draw all figures and print their names."""
    parser = parser_of(__doc__)
    parser.add_argument("reports", type=Path, nargs="+", help="JSON of bench_kernels.py")
    parser.add_argument(
        "--out", type=Path, default=Path("out"), help="folder, or file of --by-shape (default: out)"
    )
    parser.add_argument("--slots", choices=SLOTS, help="only the rows with such KV slots")
    about = "one figure OUT of the gains, a panel for each attention shape"
    parser.add_argument("--by-shape", action="store_true", help=about)
    about = "launch configurations of bench_kernels.py --configs, in place of codec's own"
    parser.add_argument("--launched", metavar="CONFIG", nargs="+", default=(), help=about)
    args = parser.parse_args(argv)
    how = {"only": args.slots, "by_shape": args.by_shape, "launched": args.launched}
    for path in draw(args.reports, args.out, **how):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
