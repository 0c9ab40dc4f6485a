"""Draw a report of `bench_kernels.py`: times per table, gains over all, bytes of large batches.

    python scripts/kernels/plot_kernels.py out/kernels.json --out docs/results

Several reports of one machine can be given; rows of a later one replace those of an earlier one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from library import results
from library.attention.problem import SLOTS
from library.attention.summary import gain
from plot_bytes import bytes_figure, large_batches
from plots import gains_figure, plt, times_figure


def draw(paths: list[Path], out: Path, dpi: int, only: str | None = None) -> list[Path]:
    """Write the figures of some reports into the folder `out`; of one layout of KV slots."""
    head, rows = results.load(paths)
    rows = [row for row in rows if only in (None, row.get("slots"))]
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
        if large := large_batches(members):
            figure = bytes_figure(
                f"what all bytes take at bandwidth, and codec's share of that limit ({about})",
                large,
            )
            written.append(_save(figure, out / f"kernels-bytes{suffix}.png", dpi))
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
    parser.add_argument("--slots", choices=SLOTS, help="only the rows with such KV slots")
    options = parser.parse_args()
    for path in draw(options.reports, options.out, options.dpi, options.slots):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
