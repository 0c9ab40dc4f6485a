"""The distribution of the differences, codec's pairs beside those of stock backends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from library.figures import panels, save

_OURS, _STOCK = ("#d62728", "#ff7f0e", "#9467bd"), ("#1f77b4", "#6baed6", "#2ca02c", "#999999")


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw what share of positions differs by more than x; from the JSON alone."""
    figure, (axis,) = panels(1, (8, 5))
    for ours, colours, style in ((True, _OURS, "-"), (False, _STOCK, "--")):
        pairs = [d for d in document["differences"] if d["is_ours"] == ours and d["positions"]]
        for number, pair in enumerate(pairs):
            # the largest one has no share beyond it
            points = [(x, 1 - share) for share, x in pair["quantiles"] if share < 1 and x > 0]
            label = f"{pair['first']} and {pair['second']} ({pair['positions']:,} positions)"
            axis.plot(*zip(*points, strict=True), style, color=colours[number % len(colours)])
            axis.lines[-1].set_label(label)
    axis.set(xscale="log", yscale="log", xlabel="difference of log-probabilities (absolute)")
    axis.set_ylabel("share of decode steps with a larger one")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="lower left")
    save(figure, f"{document['model']}, {document['gpu']}", path)
