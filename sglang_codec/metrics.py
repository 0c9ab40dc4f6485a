"""What an operator sees of codec: Prometheus metrics, a piece of the decode log line, a state."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglang_codec.batch_planner import BatchPlanner

PREFIX = "sglang:codec_"

# metric -> key of the state, and what it counts
COUNTERS = {
    "decode_steps_total": ("steps", "Decode steps that codec served."),
    "plans_total": ("plans", "Decode steps for which a plan was made."),
    "plans_reused_total": ("plans_reused", "Decode steps that an earlier plan served."),
    "plans_moved_total": ("moves", "Decode steps for which an earlier plan was brought to date."),
    "plan_seconds_total": ("plan_seconds", "Host time spent making and uploading plans (s)."),
    "plan_read_seconds_total": ("read_seconds", "Of it, comparing batches and reading the tree."),
    "plan_make_seconds_total": ("make_seconds", "Of it, planning."),
    "plan_send_seconds_total": ("send_seconds", "Of it, uploading and filling the KV index."),
    "kv_tokens_read_total": (
        "kv_tokens_read",
        "KV tokens read by decode attention, in the mean of layers and KV heads.",
    ),
    "kv_tokens_saved_total": (
        "kv_tokens_saved",
        "KV tokens that reading every request on its own would have read besides.",
    ),
}
# metric and key of the state -> what it is
GAUGES = {
    "share_ratio": "KV tokens saved over read and saved, in the latest decode batch (0 to 1).",
    "slowest_seconds": "Host time of the slowest plan since the start (s).",
    "segments": "Runs of KV tokens with several readers, in the latest planned batch.",
    "depth": "Runs on the longest path, private tail included, in the latest planned batch.",
}
FALLBACKS = "Times that a batch or request was not served as usual, by reason."


class ServingReport:
    """The numbers of one decode backend, read from the totals that it keeps anyway.

    Args:
        planner: whose totals and latest plan are reported.
        fallbacks: live counts by reason.
    """

    def __init__(self, planner: BatchPlanner, fallbacks: Mapping[str, int]) -> None:
        self._planner = planner
        self._fallbacks = fallbacks
        self._logged = self.state()
        self._exporter: Exporter | None = None

    def state(self) -> dict[str, Any]:
        """Totals since the start, and the shape of the latest planned batch."""
        planner, made = self._planner, self._planner.made
        return planner.totals.to_dict() | {
            "plans_reused": planner.totals.plans_reused,
            "kv_tokens_saved": planner.totals.kv_tokens_saved,
            "fallbacks": dict(self._fallbacks),
            "share_ratio": planner.share_ratio,
            "segments": max((one.packed.num_shared for one in made), default=0),
            "depth": max((one.packed.depth for one in made), default=0),
        }

    def line(self) -> str:
        """What happened since the last call; segments and depth are the latest plan's."""
        now, before = self.state(), self._logged
        self._logged = now
        read, saved, stock, plans, reused = (
            now[key] - before[key]
            for key in (
                "kv_tokens_read",
                "kv_tokens_saved",
                "kv_tokens_stock",
                "plans",
                "plans_reused",
            )
        )
        each = ""
        if plans:
            total, *parts = (
                1e3 * (now[f"{stage}_seconds"] - before[f"{stage}_seconds"]) / plans
                for stage in ("plan", "read", "make", "send")
            )
            each = f", {total:.1f} ms each: " + " + ".join(f"{part:.2f}" for part in parts)
        fallbacks = _increase(now["fallbacks"], before["fallbacks"])
        reasons = "; ".join(f"{reason}: {count}" for reason, count in fallbacks.items())
        return (
            f"codec: share {saved / max(stock, 1):.2f}, "
            f"KV read {_short(read)} of {_short(stock)}, "
            f"segments {now['segments']}, depth {now['depth']}, "
            f"plans {plans} (+{reused} reused{each}), "
            f"fallbacks {sum(fallbacks.values())}" + (f" ({reasons})" if reasons else "")
        )

    def export(self, collector: Any) -> None:
        """Bring the metrics to date; the first call makes them, with the collector's labels."""
        if self._exporter is None:
            self._exporter = Exporter(collector)
        self._exporter.update(self.state())


class Exporter:
    """The metrics of one process, beside those of SGLang's collector."""

    def __init__(self, collector: Any) -> None:
        # SGLang has set up the client's multi-process mode by now: it must not be imported before
        import prometheus_client

        # SGLang lets a collector bring its own classes, such as Ray's
        counter = getattr(collector, "_counter_cls", None) or prometheus_client.Counter
        gauge = getattr(collector, "_gauge_cls", None) or prometheus_client.Gauge
        labels = dict(collector.labels)
        metrics = _metrics(counter, gauge, tuple(labels))
        self._counters = {k: m.labels(**labels) for k, m in metrics.counters.items()}
        self._gauges = {k: m.labels(**labels) for k, m in metrics.gauges.items()}
        self._fallbacks, self._labels = metrics.fallbacks, labels
        self._exported: dict[str, Any] = dict.fromkeys(self._counters, 0) | {"fallbacks": {}}

    def update(self, state: Mapping[str, Any]) -> None:
        """Counters grow by what is new in `state`, gauges take its values."""
        for key, counter in self._counters.items():
            counter.inc(state[key] - self._exported[key])
        for key, gauge in self._gauges.items():
            gauge.set(state[key])
        for reason, count in _increase(state["fallbacks"], self._exported["fallbacks"]).items():
            self._fallbacks.labels(**self._labels, reason=reason).inc(count)
        self._exported = dict(state)


@dataclass(frozen=True, slots=True)
class _Metrics:
    """Metrics without label values, by key of the state."""

    counters: dict[str, Any]
    gauges: dict[str, Any]
    fallbacks: Any


@functools.cache
def _metrics(counter: type, gauge: type, labels: tuple[str, ...]) -> _Metrics:
    # a process may register a name once only
    return _Metrics(
        {
            key: counter(name=PREFIX + name, documentation=what, labelnames=labels)
            for name, (key, what) in COUNTERS.items()
        },
        {
            key: gauge(
                name=PREFIX + key,
                documentation=what,
                labelnames=labels,
                multiprocess_mode="mostrecent",
            )
            for key, what in GAUGES.items()
        },
        counter(
            name=f"{PREFIX}fallbacks_total",
            documentation=FALLBACKS,
            labelnames=(*labels, "reason"),
        ),
    )


def _increase(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {k: count - before.get(k, 0) for k, count in now.items() if count != before.get(k, 0)}


def _short(number: int) -> str:
    """``999``, ``1.2k``, ``3.4M``, ``5.6G``, ``7.8T``."""
    if number < 1000:
        return f"{number}"
    unit = min((len(str(number)) - 1) // 3, 4)
    return f"{number / 1000**unit:.1f}{'kMGT'[unit - 1]}"
