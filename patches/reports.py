"""What codec reports of itself through SGLang, and the rule that a report never ends serving."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

logger = logging.getLogger(__name__)


class Report(Protocol):
    """The numbers of a decode backend, in the forms that SGLang has a place for."""

    def export(self, collector: Any) -> None:
        """Bring the Prometheus metrics beside those of this `SchedulerMetricsCollector` to date."""
        ...

    def line(self) -> str:
        """What happened since the last call, to follow SGLang's decode line."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything since the start; values that JSON and msgpack know."""
        ...


class Reports:
    """The report of this process. A part of it that raises is logged and not asked for again."""

    def __init__(self) -> None:
        self._report: Report | None = None
        self._failed: set[str] = set()

    def use(self, report: Report) -> None:
        self._report, self._failed = report, set()

    def export(self, collector: Any) -> None:
        self._ask("metrics", lambda report: report.export(collector))

    def line(self) -> str | None:
        return self._ask("part of the decode log line", lambda report: report.line())

    def state(self) -> dict[str, Any] | None:
        return self._ask("part of the server info", lambda report: report.state())

    def _ask(self, part: str, ask: Callable[[Report], Any]) -> Any:
        if self._report is None or part in self._failed:
            return None
        try:
            return ask(self._report)
        except Exception:  # whatever it is, requests must not suffer from it
            self._failed.add(part)
            logger.warning(
                "codec: its %s failed and is off; it goes on serving", part, exc_info=True
            )
            return None


# one scheduler process has one decode backend, so one report
REPORTS = Reports()
