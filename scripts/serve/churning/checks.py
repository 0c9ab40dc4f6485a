"""What must hold after a churn; each check says what it saw."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from churning.client import Served

# SGLang's line for a request that its client gave up is no error
TROUBLE = re.compile(
    r"^(?!.*disconnected).*(Traceback \(most recent call last\)|SharingMismatch|memory leak).*$",
    re.MULTILINE,
)
MOST_GROWTH_MIB = 200
RETRACTED = re.compile(r"#retracted_reqs: (\d+)")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold; `holds` is None if this run cannot tell."""

    name: str
    holds: bool | None
    seen: str


def no_error(served: Iterable[Served]) -> Check:
    errors = [f"{s.ask.name}: {s.error}" for s in served if s.error]
    return Check("no request failed", not errors, errors[0] if errors else "no error")


def clean_log(log: str | None) -> Check:
    """No exception, no failed debug invariant, no leak that SGLang's own check found."""
    name = "the server's log shows no exception"
    if log is None:
        return Check(name, None, "the log of a server that somebody else started")
    lines = [match.group().strip() for match in TROUBLE.finditer(log)]
    return Check(name, not lines, f"{len(lines)} lines, first {lines[0]!r}" if lines else "none")


def flushed(levels: Sequence[int | None]) -> Check:
    """After each flush as many KV tokens are in use as before the first request."""
    name = "the KV pool is as empty after every flush as at the start"
    if None in levels:
        return Check(name, None, "this SGLang does not tell how many tokens are in use")
    return Check(name, len(set(levels)) == 1, f"tokens in use: {levels}")


def no_fallback(counters: dict[str, Any] | None) -> Check:
    name = "codec served every batch as usual"
    if counters is None:
        return Check(name, None, "the server does not decode with codec")
    reasons = "; ".join(f"{why}: {count}" for why, count in counters["fallbacks"].items())
    return Check(name, not reasons, reasons or "no fallback")


def planned(counters: dict[str, Any] | None) -> Check:
    """That plans were both made and reused, or the rest says little."""
    name = "plans were made and reused"
    if counters is None:
        return Check(name, None, "the server does not decode with codec")
    plans, steps = counters["plans"], counters["decode_steps"]
    return Check(name, 0 < plans < steps, f"{plans} plans for {steps} decode steps")


def no_growth(name: str, grown: float | None) -> Check:
    seen = "cannot be seen from here" if grown is None else f"{grown:+.0f} MiB"
    name = f"{name} memory grew by at most {MOST_GROWTH_MIB} MiB"
    return Check(name, None if grown is None else grown <= MOST_GROWTH_MIB, seen)


def same_alone(pairs: Sequence[tuple[Served, Served]], *, required: bool) -> Check:
    """Requests that were served again alone; rounding may decide ties unless in fp32."""
    same = sum(first.output_ids == again.output_ids for first, again in pairs)
    failed = [again.error for _, again in pairs if again.error]
    seen = failed[0] if failed else f"{same} of {len(pairs)}"
    holds = not failed and same == len(pairs)
    return Check("requests get the same tokens alone", holds if required or failed else None, seen)


def retractions(log: str | None, served: Iterable[Served]) -> int:
    """As the log has them, else as the answers do (aborted requests may not tell)."""
    if log is not None:
        return sum(int(count) for count in RETRACTED.findall(log))
    return sum(s.retractions for s in served)
