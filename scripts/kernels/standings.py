"""Where a report stands, table by table: gains over each rival, distance from the limit."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from library.attention import traffic
from library.attention.peers import PREFIX_AWARE, STOCK
from library.attention.summary import LOSING, best, gain, geometric_mean

BIG_ROW_US = 30.0  # a row whose limit is at least this is judged by its share of the limit
SMALL_BATCH = 256  # above it Q, O and partial bytes are no longer small beside KV
SHORT_ROW_BATCH = 64  # of rows below `BIG_ROW_US`, those up to this batch are judged by distance


def limit_us(row: dict) -> float:
    return row["limit_us"]


def shares(
    rows: list[dict], limit_of: Callable[[dict], float | None] = limit_us
) -> list[tuple[float, dict]]:
    """What part of the limit `codec` reaches in each row that is big enough, and the row."""
    return [
        (limit / ours[1], row)
        for row in rows
        if row["limit_us"] >= BIG_ROW_US
        if (ours := best(row, ("codec",))) and (limit := limit_of(row))
    ]


def distances(rows: list[dict]) -> list[tuple[float, dict]]:
    """Microseconds between `codec` and the limit in each short row of few requests, and the row."""
    return [
        (ours[1] - row["limit_us"], row)
        for row in rows
        if row["limit_us"] < BIG_ROW_US and row["batch"] <= SHORT_ROW_BATCH
        if (ours := best(row, ("codec",)))
    ]


def standings(rows: list[dict]) -> str:
    """Markdown: a line per table and head configuration, and one per table with several."""
    rivals = {"best stock": STOCK, **{peer: (peer,) for peer in PREFIX_AWARE}}
    heading = ["table", "heads", "rows", *(f"over {name} (rows lost)" for name in rivals)]
    heading += [f"of limit, batch <= {SMALL_BATCH}", f"of limit, batch > {SMALL_BATCH}"]
    heading += ["the same with all bytes", "furthest short row"]
    lines = [f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
    for (name, heads), members in _groups(rows).items():
        few = [row for row in members if row["batch"] <= SMALL_BATCH]
        many = [row for row in members if row["batch"] > SMALL_BATCH]
        cells = [name, heads, str(len(members))]
        cells += [_gain_cell(members, peers) for peers in rivals.values()]
        cells += [_share_cell(few), _share_cell(many), _share_cell(many, traffic.full_limit_us)]
        furthest = max((us for us, _ in distances(members)), default=None)
        cells.append("-" if furthest is None else f"{furthest:.1f} us")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _groups(rows: list[dict]) -> dict[tuple[str, str], list[dict]]:
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["table"], row["heads"]), []).append(row)
    for name in dict.fromkeys(row["table"] for row in rows):
        of_table = [row for row in rows if row["table"] == name]
        if len({row["heads"] for row in of_table}) > 1:
            groups[name, "all"] = of_table
    return groups


def _gain_cell(rows: list[dict], peers: tuple[str, ...]) -> str:
    ratios = [ratio for row in rows if (ratio := gain(row, peers)) is not None]
    if not ratios:
        return "-"
    lost = sum(ratio < LOSING if peers == STOCK else ratio <= 1 for ratio in ratios)
    of = "" if len(ratios) == len(rows) else f" of {len(ratios)}"
    return f"{geometric_mean(ratios):.2f}x ({lost}{of})"


def _share_cell(rows: list[dict], limit_of: Callable[[dict], float | None] = limit_us) -> str:
    found = [share for share, _ in shares(rows, limit_of)]
    return f"{statistics.median(found):.0%}, worst {min(found):.0%}" if found else "-"
