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

# geometric-mean gain over the best stock backend: table, heads (empty: all), goal
GAINS = (
    ("codec", "", 1.9),
    ("fasttree", "", 3.5),
    ("fasttree", "16/1", 3.5),
    ("fasttree", "32/8", 3.5),
    ("fasttree", "32/32", 3.5),
    ("pat", "32/8", 2.8),
)
BIG_ROW_US = 30.0  # a row whose limit is at least this is judged by its share of the limit
SMALL_BATCH = 256  # above it Q, O and partial bytes are no longer small beside KV
SHORT_ROW_BATCH = 64  # of rows below `BIG_ROW_US`, those up to this batch are judged by distance
SHARE_SMALL_BATCH, SHARE_LARGE_BATCH, SHORT_ROW_US = 0.85, 0.5, 8.0
WORST = 6  # rows named per target

Figure = Callable[[dict], float | None]


@dataclass(frozen=True)
class Verdict:
    """One target: what is asked, what was found (for people), and the rows that miss, worst first.

    `reached` is None where no row says anything about it.
    """

    goal: str
    found: str = ""
    reached: bool | None = None
    misses: tuple[str, ...] = ()

    def text(self) -> str:
        state = {True: "reached", False: "NOT reached", None: "not measured"}[self.reached]
        line = f"target {self.goal}: {state}" + (f" ({self.found})" if self.found else "")
        shown = [f"\n    {miss}" for miss in self.misses[:WORST]]
        more = len(self.misses) - len(shown)
        return line + "".join(shown) + (f"\n    and {more} more" if more > 0 else "")


def evaluate(rows: list[dict]) -> list[Verdict]:
    """A verdict per target on the rows of one dtype and one layout of KV slots."""
    big = [row for row in rows if row["limit_us"] >= BIG_ROW_US]
    few = [row for row in big if row["batch"] <= SMALL_BATCH]
    many = [row for row in big if row["batch"] > SMALL_BATCH]
    short = [row for row in rows if row not in big and row["batch"] <= SHORT_ROW_BATCH]
    large = f"limit >= {BIG_ROW_US:g} us, batch > {SMALL_BATCH}"
    return [
        _right(rows),
        *(_mean_gain(rows, *target) for target in GAINS),
        _judge(f"no row below {LOSING}x of the best stock backend", rows, gain, LOSING, "{:.2f}x"),
        _judge(
            f"at least {SHARE_SMALL_BATCH:.0%} of the limit, limit >= {BIG_ROW_US:g} us, "
            f"batch <= {SMALL_BATCH}",
            few,
            _share,
            SHARE_SMALL_BATCH,
        ),
        _judge(
            f"at least {SHARE_LARGE_BATCH:.0%} of the limit of KV alone, {large}",
            many,
            _share,
            SHARE_LARGE_BATCH,
        ),
        _judge(
            f"at least {SHARE_LARGE_BATCH:.0%} of the limit with Q, O and partials, {large}",
            many,
            _full_share,
            SHARE_LARGE_BATCH,
        ),
        _judge(
            f"no row further than {SHORT_ROW_US:g} us from its limit, limit < {BIG_ROW_US:g} us, "
            f"batch <= {SHORT_ROW_BATCH}",
            short,
            _distance,
            -SHORT_ROW_US,
            "{:.1f} us",
        ),
        *(_faster_than(rows, peer) for peer in PREFIX_AWARE),
    ]


def _share(row: dict) -> float | None:
    ours = best(row, ("codec",))
    return row["limit_us"] / ours[1] if ours else None


def _full_share(row: dict) -> float | None:
    ours, limit = best(row, ("codec",)), traffic.full_limit_us(row)
    return limit / ours[1] if ours and limit else None


def _distance(row: dict) -> float | None:
    """The further, the worse: negative."""
    ours = best(row, ("codec",))
    return row["limit_us"] - ours[1] if ours else None


def _right(rows: list[dict]) -> Verdict:
    # a row without a result is in no other verdict
    missing = tuple(label(row) for row in rows if best(row, ("codec",)) is None)
    goal = "codec runs every row and its output is right"
    if not rows:
        return Verdict(goal)
    return Verdict(goal, f"{len(rows) - len(missing)} of {len(rows)} rows", not missing, missing)


def _mean_gain(rows: list[dict], table: str, heads: str, goal: float) -> Verdict:
    of_table = [r for r in rows if r["table"] == table and heads in ("", r["heads"])]
    ratios = [ratio for row in of_table if (ratio := gain(row)) is not None]
    name = f"{table} {heads or 'at all heads'}"
    text = f"{name}: geometric mean over the best stock backend >= {goal:g}x"
    if not ratios:
        return Verdict(text)
    mean = geometric_mean(ratios)
    return Verdict(text, f"{mean:.2f}x over {len(ratios)} rows", mean >= goal)


def _faster_than(rows: list[dict], peer: str) -> Verdict:
    def figure(row: dict) -> float | None:
        return gain(row, (peer,))

    least = 1 + 1e-12  # equal is not faster
    verdict = _judge(f"faster than {peer} on every row", rows, figure, least, "{:.2f}x")
    without = sum(figure(row) is None for row in rows)
    found = f"{verdict.found}; not run or wrong on {without}" if verdict.found and without else ""
    return Verdict(verdict.goal, found or verdict.found, verdict.reached, verdict.misses)


def _judge(
    goal: str, rows: list[dict], figure: Figure, least: float, form: str = "{:.0%}"
) -> Verdict:
    """Every row's figure against the least; negative ones are shown as positive."""
    figures = ((figure(row), label(row)) for row in rows)
    judged = sorted(pair for pair in figures if pair[0] is not None)
    if not judged:
        return Verdict(goal)
    misses = tuple(f"{form.format(abs(f))}  {name}" for f, name in judged if f < least)
    middle = form.format(abs(statistics.median(f for f, _ in judged)))
    worst = form.format(abs(judged[0][0]))
    found = f"{len(judged) - len(misses)} of {len(judged)} rows, worst {worst}, median {middle}"
    return Verdict(goal, found, not misses, misses)


def by_layout(rows: list[dict]) -> dict[str, list[dict]]:
    """Rows by dtype and layout of the KV slots: each must reach the targets by itself."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(f"{row['dtype']}, {row.get('slots', '')} KV slots", []).append(row)
    return groups


def report(rows: list[dict]) -> str:
    """The verdicts of every layout in a report, and how many targets are reached."""
    parts = []
    for name, members in by_layout(rows).items():
        verdicts = evaluate(members)
        reached = sum(verdict.reached is True for verdict in verdicts)
        unknown = sum(verdict.reached is None for verdict in verdicts)
        head = f"## {name}: {reached} of {len(verdicts)} targets reached, {unknown} not measured"
        parts.append("\n".join([head, "", *(verdict.text() for verdict in verdicts)]))
    return "\n\n".join(parts)
