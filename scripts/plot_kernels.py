"""Draw a report of `bench_kernels.py`: one figure of times per table, one of gains for all tables.

    python scripts/plot_kernels.py out/kernels.json --out docs/results

Several reports of one machine can be given; rows of a later one replace those of an earlier one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench.plots import gains_figure, plt, times_figure
from bench.summary import gain


def load(paths: list[Path]) -> tuple[dict, list[dict]]:
    """The last report's head, and the rows of all of them."""
    rows: dict[tuple, dict] = {}
    head: dict = {}
    for path in paths:
        head = json.loads(path.read_text())
        for row in head["rows"]:
            rows[tuple(row.get(k) for k in ("table", "name", "heads", "dtype", "slots"))] = row
    return head, list(rows.values())


def draw(paths: list[Path], out: Path, dpi: int) -> list[Path]:
    """Write the figures of some reports into the folder `out`."""
    head, rows = load(paths)
    out.mkdir(parents=True, exist_ok=True)
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["dtype"], row.get("slots", "")), []).append(row)
    written = []
    for (dtype, slots), members in groups.items():
        suffix = "" if len(groups) == 1 else f"-{dtype}-{slots}"
        about = f"{head['gpu']}, {dtype}, {slots} KV slots, commit {head['commit'][:10]}"
        for table in dict.fromkeys(row["table"] for row in members):
            figure = times_figure(
                f"{table}: time per layer ({about})",
                [row for row in members if row["table"] == table and row["us"]],
            )
            written.append(_save(figure, out / f"kernels-{table}{suffix}.png", dpi))
        if any(gain(row) is not None for row in members):
            figure = gains_figure(f"codec against the best stock backend ({about})", members)
            written.append(_save(figure, out / f"kernels-gain{suffix}.png", dpi))
    return written


def _save(figure: plt.Figure, path: Path, dpi: int) -> Path:
    figure.savefig(path, dpi=dpi)
    plt.close(figure)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reports", type=Path, nargs="+", help="JSON of bench_kernels.py")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the figures")
    parser.add_argument("--dpi", type=int, default=110)
    options = parser.parse_args()
    for path in draw(options.reports, options.out, options.dpi):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
