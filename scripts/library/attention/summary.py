"""What a report says in a few lines: gain over the best stock backend, distance to the limit."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from library.attention import traffic
from library.attention.peers import PREFIX_AWARE, STOCK

LOSING = 0.97  # a row below this share of the best stock backend's speed loses


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


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


def summarise(rows: list[dict], worst: int = 8) -> str:
    """Geometric means per table, head configuration and slots; worst and losing rows."""
    heading = f"{'table':<10}{'heads':>6}{'slots':>6}{'rows':>6}{'/stock':>8}{'/aware':>8}"
    lines = [heading + f"{'of limit':>10}{'stock of':>10}{'losing':>8}"]
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for row in rows:
        slots = row.get("slots", "")[:4]
        groups.setdefault((row["table"], row["heads"], slots), []).append(row)
        if row["table"] in ("fasttree", "pat"):
            groups.setdefault((row["table"], "all", slots), []).append(row)
    lines += [_group_line(*key, members) for key, members in groups.items()]
    ranked = sorted(((gain(row), row) for row in rows if gain(row)), key=lambda pair: pair[0])
    if ranked:
        lines += ["", f"worst against the best stock backend, and all below {LOSING}x:"]
        shown = max(worst, sum(ratio < LOSING for ratio, _ in ranked))
        lines += [f"  {ratio:6.2f}x  {label(row)}  {line(row)}" for ratio, row in ranked[:shown]]
    slower = [(gain(row, PREFIX_AWARE), row) for row in rows]
    beaten = [(ratio, row) for ratio, row in slower if ratio is not None and ratio < 1]
    if beaten:
        lines += ["", f"rows on which a prefix-aware peer is faster ({len(beaten)}):"]
        lines += [f"  {ratio:6.2f}x  {label(row)}" for ratio, row in beaten]
    wrong = [f"{label(row)}: {peer}" for row in rows for peer in row["wrong"]]
    if wrong:
        lines += ["", "wrong results:", *(f"  {entry}" for entry in wrong)]
    return "\n".join([*lines, *prediction(rows), *reasons(rows)])


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


def _group_line(table: str, heads: str, slots: str, rows: list[dict]) -> str:
    gains = [ratio for row in rows if (ratio := gain(row))]
    aware = [ratio for row in rows if (ratio := gain(row, PREFIX_AWARE))]
    ours = [us[1] / row["limit_us"] for row in rows if (us := best(row, ("codec",)))]
    stock = [us[1] / row["limit_us"] for row in rows if (us := best(row, STOCK))]
    losing = sum(ratio < LOSING for ratio in gains)
    numbers = f"{_times(gains):>8}{_times(aware):>8}{_times(ours):>10}{_times(stock):>10}"
    return f"{table:<10}{heads:>6}{slots:>6}{len(rows):>6}{numbers}{losing:>8}"


def _times(ratios: list[float]) -> str:
    return f"{geometric_mean(ratios):.2f}x" if ratios else "-"


def reasons(rows: list[dict]) -> list[str]:
    """Why peers are missing, each reason once."""
    counts: dict[str, int] = {}
    for row in rows:
        for peer, why in row["why"].items():
            counts[f"{peer}: {why}"] = counts.get(f"{peer}: {why}", 0) + 1
    lines = [f"  {count:4d} rows  {reason}" for reason, count in counts.items()]
    return ["", "missing:", *lines] if lines else []
