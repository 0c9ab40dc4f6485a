"""What the kernels are asked to reach, and whether a report's rows reach it.

Only what was measured counts: a target without a row is neither reached nor missed. Times of peers
whose output was wrong are not compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from library.attention import traffic
from library.attention.peers import PREFIX_AWARE
from library.attention.summary import LOSING, best, gain, geometric_mean, label
from standings import (
    BIG_ROW_US,
    SHORT_ROW_BATCH,
    SMALL_BATCH,
    distances,
    limit_us,
    shares,
    standings,
)

# geometric-mean gain over the best stock backend: table, head configurations (None: all), goal
GAINS = (
    ("codec", None, 1.9),
    ("fasttree", None, 3.5),
    ("fasttree", "16/1", 3.5),
    ("fasttree", "32/8", 3.5),
    ("fasttree", "32/32", 3.5),
    ("pat", "32/8", 2.8),
)
SHARE_SMALL_BATCH = 0.85
SHARE_LARGE_BATCH = 0.5
SHORT_ROW_US = 8.0
WORST = 6  # rows named per target


@dataclass(frozen=True)
class Verdict:
    """One target.

    Args:
        goal: what is asked.
        found: what was measured, for people.
        reached: None where no row says anything about it.
        misses: the rows that miss it, worst first.
    """

    goal: str
    found: str
    reached: bool | None
    misses: tuple[str, ...] = ()

    def text(self) -> str:
        state = {True: "reached", False: "NOT reached", None: "not measured"}[self.reached]
        line = f"target {self.goal}: {state}"
        if self.found:
            line += f" ({self.found})"
        shown = [f"\n    {miss}" for miss in self.misses[:WORST]]
        more = len(self.misses) - len(shown)
        return line + "".join(shown) + (f"\n    and {more} more" if more > 0 else "")


def evaluate(rows: list[dict]) -> list[Verdict]:
    """A verdict per target on the rows of one dtype and one layout of KV slots."""
    few = [row for row in rows if row["batch"] <= SMALL_BATCH]
    many = [row for row in rows if row["batch"] > SMALL_BATCH]
    big = f"limit >= {BIG_ROW_US:g} us, batch"
    return [
        _right(rows),
        *(_mean_gain(rows, *target) for target in GAINS),
        _no_loss(rows),
        _share(
            few,
            f"at least {SHARE_SMALL_BATCH:.0%} of the limit, {big} <= {SMALL_BATCH}",
            SHARE_SMALL_BATCH,
            limit_us,
        ),
        _share(
            many,
            f"at least {SHARE_LARGE_BATCH:.0%} of the limit of KV alone, {big} > {SMALL_BATCH}",
            SHARE_LARGE_BATCH,
            limit_us,
        ),
        _share(
            many,
            f"at least {SHARE_LARGE_BATCH:.0%} of the limit with Q, O and partials, {big} > "
            f"{SMALL_BATCH}",
            SHARE_LARGE_BATCH,
            traffic.full_limit_us,
        ),
        _distance(rows),
        *(_faster_than(rows, peer) for peer in PREFIX_AWARE),
    ]


def _right(rows: list[dict]) -> Verdict:
    # a row without a result is in no other verdict
    missing = [label(row) for row in rows if best(row, ("codec",)) is None]
    goal = "codec runs every row and its output is right"
    found = f"{len(rows) - len(missing)} of {len(rows)} rows"
    return Verdict(goal, found, not missing, tuple(missing)) if rows else Verdict(goal, "", None)


def _mean_gain(rows: list[dict], table: str, heads: str | None, goal: float) -> Verdict:
    of_table = [r for r in rows if r["table"] == table and heads in (None, r["heads"])]
    ratios = [ratio for row in of_table if (ratio := gain(row)) is not None]
    name = f"{table} {'at all heads' if heads is None else heads}"
    text = f"{name}: geometric mean over the best stock backend >= {goal:g}x"
    if not ratios:
        return Verdict(text, "", None)
    mean = geometric_mean(ratios)
    return Verdict(text, f"{mean:.2f}x over {len(ratios)} rows", mean >= goal)


def _no_loss(rows: list[dict]) -> Verdict:
    return _judge(
        f"no row below {LOSING}x of the best stock backend",
        [(ratio, row) for row in rows if (ratio := gain(row)) is not None],
        lambda ratio: ratio >= LOSING,
        "{:.2f}x",
    )


def _share(
    rows: list[dict], goal: str, least: float, limit_of: Callable[[dict], float | None]
) -> Verdict:
    return _judge(goal, shares(rows, limit_of), lambda share: share >= least, "{:.0%}")


def _distance(rows: list[dict]) -> Verdict:
    return _judge(
        f"no row further than {SHORT_ROW_US:g} us from its limit, limit < {BIG_ROW_US:g} us, "
        f"batch <= {SHORT_ROW_BATCH}",
        # the further, the worse: ranked by the negative
        [(-us, row) for us, row in distances(rows)],
        lambda negative: -negative <= SHORT_ROW_US,
        "{:.1f} us",
    )


def _faster_than(rows: list[dict], peer: str) -> Verdict:
    judged = [(ratio, row) for row in rows if (ratio := gain(row, (peer,))) is not None]
    verdict = _judge(f"faster than {peer} on every row", judged, lambda r: r > 1, "{:.2f}x")
    without = sum(gain(row, (peer,)) is None for row in rows)
    found = f"{verdict.found}; not run or wrong on {without}" if judged and without else ""
    return Verdict(verdict.goal, found or verdict.found, verdict.reached, verdict.misses)


def _judge(
    goal: str, judged: list[tuple[float, dict]], is_good: Callable[[float], bool], form: str
) -> Verdict:
    """`judged` holds a figure per row, the lower the worse; negative ones are shown as positive."""
    if not judged:
        return Verdict(goal, "", None)
    ranked = sorted(judged, key=lambda pair: pair[0])
    misses = [
        f"{form.format(abs(figure))}  {label(row)}" for figure, row in ranked if not is_good(figure)
    ]
    middle = statistics.median(figure for figure, _ in judged)
    found = f"{len(judged) - len(misses)} of {len(judged)} rows, worst "
    found += f"{form.format(abs(ranked[0][0]))}, median {form.format(abs(middle))}"
    return Verdict(goal, found, not misses, tuple(misses))


def by_layout(rows: list[dict]) -> dict[str, list[dict]]:
    """Rows by dtype and layout of the KV slots: each must reach the targets by itself."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(f"{row['dtype']}, {row.get('slots', '')} KV slots", []).append(row)
    return groups


def report(rows: list[dict]) -> str:
    """The table and the verdicts of every layout in a report, and how many targets are reached."""
    parts = []
    for name, members in by_layout(rows).items():
        verdicts = evaluate(members)
        reached = sum(verdict.reached is True for verdict in verdicts)
        unknown = sum(verdict.reached is None for verdict in verdicts)
        head = f"## {name}: {reached} of {len(verdicts)} targets reached, {unknown} not measured"
        lines = [verdict.text() for verdict in verdicts]
        parts.append("\n".join([head, "", standings(members), "", *lines]))
    return "\n\n".join(parts)
