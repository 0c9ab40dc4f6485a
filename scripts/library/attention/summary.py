"""What a report says in a few lines: gain over the best stock backend, distance to the limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from statistics import geometric_mean
from typing import Any

import numpy as np

from library.attention import traffic
from library.attention.peers import STOCK
from library.figures import LOSING
from library.results import markdown


def best(row: dict, peers: Iterable[str]) -> tuple[str, float] | None:
    """The fastest correct one of `peers` in this row, and its time."""
    correct = {p: us for p, us in row["us"].items() if p in peers and p not in row["wrong"]}
    return min(correct.items(), key=lambda entry: entry[1]) if correct else None


def gain(row: dict, peers: Iterable[str] = STOCK) -> float | None:
    """How many times faster `codec` is than the best of `peers`; None where either is missing."""
    other = best(row, peers)
    ours = best(row, ("codec",))
    return other[1] / ours[1] if other and ours else None


def label(row: dict) -> str:
    slots = row.get("slots", "")
    return f"{row['table']:<8} {row['name']:<13} {row['heads']:>5} {slots[:4]}".rstrip()


def line(row: dict) -> str:
    """One row as it is printed while the benchmark runs."""
    times = " ".join(
        f"{peer}={us:.1f}{'!' if peer in row['wrong'] else ''}({row['err'][peer]:.0e})"
        for peer, us in row["us"].items()
    )
    missing = " ".join(f"{peer}=-" for peer in row["why"])
    ratio = gain(row)
    full = traffic.full_limit_us(row)
    full_text = f" (all bytes {full:.1f})" if full else ""
    text = f"limit={row['limit_us']:.1f}{full_text} {times} {missing}".rstrip()
    plan = f" plan={row['plan_ms']:.3f}ms" if row["plan_ms"] is not None else ""
    return text + plan + (f" gain={ratio:.2f}" if ratio else "")


def grouped(rows: Iterable[dict], key: Callable[[dict], Any]) -> dict[Any, list[dict]]:
    """Rows by a key, in the order in which the keys come."""
    groups: dict[Any, list[dict]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def summarise(rows: list[dict]) -> str:
    """Means, wrong results, how well the planner predicts, and why peers are missing."""
    wrong = [f"{label(row)}: {peer}" for row in rows for peer in row["wrong"]]
    if wrong:
        wrong = ["", "wrong results:", *(f"  {entry}" for entry in wrong)]
    return "\n".join([means(rows), *wrong, *prediction(rows), *reasons(rows)])


def means(rows: list[dict]) -> str:
    """A line per table, heads and slots: gain, distance from the limit, losing rows, error."""
    slots = several_slots(rows)
    heads = ["table", "heads", *(["slots"] if slots else []), "rows"]
    heads += ["faster than the best stock backend", "of the limit", "best stock of the limit"]
    heads += [f"rows below {LOSING}x", "worst row", "largest error ratio"]
    names = ("table", "heads", "slots") if slots else ("table", "heads")
    groups = grouped(
        (row for row in rows if gain(row) is not None), lambda row: tuple(row[n] for n in names)
    )
    return markdown(heads, ([*group, *_means(groups[group])] for group in sorted(groups)))


def _means(rows: list[dict]) -> list[str]:
    gains = {row["name"]: gain(row) for row in rows}
    worst = min(gains, key=gains.__getitem__)
    limits = [row["us"]["codec"] / row["limit_us"] for row in rows]
    stock = [best(row, STOCK)[1] / row["limit_us"] for row in rows]
    errors = [row["err"]["codec"] / min(stock_errors(row)) for row in rows]
    return [
        str(len(rows)),
        *(f"{geometric_mean(values):.2f}x" for values in (gains.values(), limits, stock)),
        str(sum(value < LOSING for value in gains.values())),
        f"{worst} {gains[worst]:.2f}x",
        f"{max(errors):.2f}",
    ]


def stock_errors(row: dict) -> list[float]:
    return [error for peer, error in row["err"].items() if peer in STOCK]


def several_slots(rows: list[dict]) -> bool:
    return len({row.get("slots") for row in rows}) > 1


def prediction(rows: list[dict]) -> list[str]:
    """How the planner's makespan tracks the measured time, over all rows that have both."""
    pairs = [
        (row["plan"]["makespan_us"], row["us"]["codec"], row)
        for row in rows
        if row.get("plan", {}).get("makespan_us") and "codec" in row["us"]
    ]
    if len(pairs) < 3:
        return []
    predicted, measured = (np.log([pair[i] for pair in pairs]) for i in (0, 1))
    correlation = float(np.corrcoef(predicted, measured)[0, 1])
    ratio = np.exp(measured - predicted)
    worst = int(np.abs(np.log(ratio / np.median(ratio))).argmax())
    return [
        "",
        f"predicted makespan: correlation {correlation:.3f} (of logarithms); measured / predicted "
        f"{np.median(ratio):.2f} in the median, {ratio[worst]:.2f} at worst "
        f"({label(pairs[worst][2])})",
    ]


def reasons(rows: list[dict]) -> list[str]:
    """Why peers are missing, each reason once."""
    counts = Counter(f"{peer}: {why}" for row in rows for peer, why in row["why"].items())
    lines = [f"  {count:4d} rows  {reason}" for reason, count in counts.items()]
    return ["", "missing:", *lines] if lines else []
