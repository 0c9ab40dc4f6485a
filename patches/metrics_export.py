"""Export codec's metrics whenever SGLang's scheduler exports its own."""

from __future__ import annotations

from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from sglang_codec.patches.patch import Patch
from sglang_codec.patches.reports import REPORTS


def export_metrics(_result: None, collector: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER hook."""
    REPORTS.export(collector)


EXPORT_METRICS = Patch(
    target="sglang.srt.observability.metrics_collector.SchedulerMetricsCollector.log_stats",
    hook=HookType.AFTER,
    apply=export_metrics,
    why="/metrics says nothing of codec",
    upstream="log_stats(stats) runs on the ranks that have metrics only, at every prefill report, "
    "every decode_log_interval decode steps and when idle; self.labels are the rank's labels",
    remove_when="an attention backend can register metrics with SGLang's collector",
)
