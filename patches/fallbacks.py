"""Counts, by reason, what could not be served as usual."""

from __future__ import annotations

import logging
from collections import Counter

logger = logging.getLogger(__name__)


class Fallbacks:
    """Counter of reasons; the first occurrence of each is logged with its detail."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def record(self, reason: str, detail: object = "", *, amount: int = 1) -> None:
        if reason not in self.counts:
            trace = detail if isinstance(detail, BaseException) else None
            logger.warning(
                "codec: %s (%s); it goes on serving. Logged once, counted.",
                reason,
                repr(detail) if trace else detail or "no detail",
                exc_info=trace,
            )
        self.counts[reason] += amount


# one scheduler process has one tree and one decode backend, so one counter
FALLBACKS = Fallbacks()
