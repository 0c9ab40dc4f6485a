"""Add codec's numbers to SGLang's periodic decode log line."""

from __future__ import annotations

import logging
import pkgutil

from sglang_codec.patches.reports import REPORTS

MODULE = "sglang.srt.managers.scheduler_components.metrics_reporter"
FUNCTION = "report_decode_stats"


class DecodeLine(logging.Filter):
    """Passes every record, and ends those of the decode report with ours."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.funcName == FUNCTION and (line := REPORTS.line()):
            record.msg, record.args = f"{record.getMessage()}, {line}", ()
        return True


_DECODE_LINE = DecodeLine()


def extend_decode_line() -> None:
    """Hook SGLang's decode report; idempotent.

    Why: the function builds its line and logs it at once, so a hook on it could only log a line of
    its own. A filter costs nothing where the line is not due or its level is off.
    Upstream: `SchedulerMetricsReporter.report_decode_stats` logs one record every
    decode_log_interval steps, on the ranks that log, with its module's `logger`.
    Remove when: an attention backend can contribute to the line.

    Raises:
        ImportError, AttributeError: SGLang has moved the function or its logger.
    """
    pkgutil.resolve_name(f"{MODULE}:SchedulerMetricsReporter.{FUNCTION}")
    pkgutil.resolve_name(f"{MODULE}:logger").addFilter(_DECODE_LINE)
