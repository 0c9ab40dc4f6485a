"""What an operator sees of codec: on real servers over HTTP, and what must not go wrong with it."""

from __future__ import annotations

import json
import logging
import os
import re
import time
import urllib.request
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from inproc_scheduler import write_tiny_llama
from sglang.srt.plugins.hook_registry import HookType
from sglang_server import RunningServer, sglang_server
from sglang_versions import OVERLAYS, REPOSITORY, VERSIONS

from sglang_codec.batch_planner import Totals
from sglang_codec.metrics import COUNTERS, GAUGES, ServingReport
from sglang_codec.patches import decode_line
from sglang_codec.patches.decode_line import extend_decode_line
from sglang_codec.patches.patch import Patch
from sglang_codec.patches.registry import REPORT_PATCHES, apply_report_patches, times_applied
from sglang_codec.patches.reports import Reports

TRUNK, REQUESTS, NEW_TOKENS, LOG_INTERVAL = 96, 4, 13, 3
SAMPLE = re.compile(r"sglang:codec_(\w+)\{(.*)\} (\S+)")


class Seen(NamedTuple):
    """What a server shows after it has served requests that share a prompt."""

    metrics: dict[str, float]
    labels: list[dict[str, str]]
    state: dict[str, Any]
    decode_lines: list[str]


# on a real server ------------------------------------------------------------------------------


# a server takes half a minute to start, and the one between is in `test_bench_serving_servers`
@pytest.fixture(scope="module", params=tuple(OVERLAYS) or VERSIONS)
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    pytest.importorskip("prometheus_client")
    folder = tmp_path_factory.mktemp("server")
    flags = ["--load-format=dummy", "--served-model-name=tiny", "--enable-metrics"]
    flags += [f"--decode-log-interval={LOG_INTERVAL}"]
    model = Path(write_tiny_llama(folder / "model"))
    overlay = OVERLAYS.get(request.param)
    path = os.pathsep.join(map(str, filter(None, (overlay, REPOSITORY))))
    with sglang_server(
        model, "codec", folder, flags=flags, variables={"PYTHONPATH": path}
    ) as server:
        trunk = list(range(3, 3 + TRUNK))
        # alone first: from then on the tree has the trunk
        _generate(server, [trunk], 1)
        _generate(server, [[*trunk, 200 + row] for row in range(REQUESTS)], NEW_TOKENS)
        info = json.loads(_get(server, "server_info"))
        assert info["version"] == request.param
        (state,) = (rank["codec"] for rank in info["internal_states"])
        metrics, labels = _metrics_of_step(server, state["steps"])
        log = server.log.read_text()
    lines = [line for line in log.splitlines() if "Decode batch" in line]
    return Seen(metrics, labels, state, lines)


def _generate(server: RunningServer, prompts: list[list[int]], new_tokens: int) -> None:
    sampling = {"max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True}
    body = json.dumps({"input_ids": prompts, "sampling_params": sampling}).encode()
    _get(server, "generate", body)


def _get(server: RunningServer, path: str, body: bytes | None = None) -> str:
    request = urllib.request.Request(
        f"{server.url}/{path}", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read().decode()


def _metrics_of_step(
    server: RunningServer, steps: int
) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Samples and their labels once they are those of `steps`: a server that turns idle exports."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        samples = SAMPLE.findall(_get(server, "metrics/"))
        values = {name: float(value) for name, _, value in samples}
        if values.get("decode_steps_total") == steps:
            break
        time.sleep(0.5)
    return values, [dict(re.findall(r'(\w+)="([^"]*)"', labels)) for _, labels, _ in samples]


def test_metrics_equal_the_internal_state(seen: Seen) -> None:
    expected = {name: seen.state[key] for name, (key, _) in COUNTERS.items()}
    expected |= {name: seen.state[name] for name in GAUGES}
    assert {name: seen.metrics[name] for name in expected} == pytest.approx(expected)


def test_numbers_are_those_of_the_requests(seen: Seen) -> None:
    """Requests that decode together read their common prompt once."""
    state = seen.state
    assert state["steps"] >= NEW_TOKENS - 1
    assert state["steps"] == state["plans"] + state["plans_reused"]
    assert 0 < state["plans"] < state["steps"]
    assert state["kv_tokens_saved"] % TRUNK == 0
    assert 0 < state["kv_tokens_saved"] <= (REQUESTS - 1) * TRUNK * state["steps"]
    assert state["kv_tokens_read"] + state["kv_tokens_saved"] == state["kv_tokens_stock"]
    stages = [state[f"{stage}_seconds"] for stage in ("read", "make", "send")]
    assert min(stages) > 0
    assert state["plan_seconds"] == pytest.approx(sum(stages))
    assert state["plan_seconds"] / state["plans"] <= state["slowest_seconds"] * (
        1 + state["moves"] / state["plans"]
    )
    assert state["fallbacks"] == {}
    # the latest batch may be a single request that was admitted after the others
    assert (state["segments"], state["depth"]) in ((1, 2), (0, 1))
    assert (state["share_ratio"] > 0) == (state["segments"] > 0)


def test_labels_are_those_of_sglangs_scheduler(seen: Seen) -> None:
    assert seen.labels
    for labels in seen.labels:
        assert labels["model_name"] == "tiny"
        assert {"engine_type", "tp_rank", "pp_rank"} <= labels.keys()


def test_every_decode_line_ends_with_codec(seen: Seen) -> None:
    assert len(seen.decode_lines) >= (NEW_TOKENS - 1) // LOG_INTERVAL
    pattern = r"codec: share 0\.\d\d, KV read \S+ of \S+, .* plans (\d+) \(\+(\d+) reused.*\), "
    found = [re.search(f"#queue-req: 0, {pattern}fallbacks 0$", line) for line in seen.decode_lines]
    assert all(found), seen.decode_lines
    # lines are about what is new: together they are about no more than everything
    plans, reused = (sum(int(f[nth]) for f in found) for nth in (1, 2))
    assert 0 < plans <= seen.state["plans"]
    assert 0 < reused <= seen.state["plans_reused"]


# one process, no server ------------------------------------------------------------------------


class Planner:
    """What a report reads of a `BatchPlanner`."""

    def __init__(self) -> None:
        self.totals, self.share_ratio = Totals(), 0.0
        self.made: tuple[Any, ...] = ()

    def serve(self, steps: int, *, read: int, stock: int) -> None:
        """`steps` steps, a plan for the first of them; KV tokens of all of them."""
        totals = self.totals
        totals.steps, totals.plans = totals.steps + steps, totals.plans + 1
        totals.add_times(SimpleNamespace(read=0.0004, make=0.0013, send=0.0003))
        totals.kv_tokens_read += read
        totals.kv_tokens_stock += stock
        self.made = (SimpleNamespace(packed=SimpleNamespace(num_shared=steps, depth=3)),)
        self.share_ratio = 1 - read / stock


def test_a_line_is_about_what_is_new() -> None:
    planner, fallbacks = Planner(), Counter(old=5)
    report = ServingReport(planner, fallbacks)
    planner.serve(40, read=1_249_000, stock=6_400_000)
    assert report.line() == (
        "codec: share 0.80, KV read 1.2M of 6.4M, segments 40, depth 3, "
        "plans 1 (+39 reused, 2.0 ms each: 0.40 + 1.30 + 0.30), fallbacks 0"
    )
    planner.totals.steps += 1
    fallbacks.update(new=2, old=1)
    assert report.line() == (
        "codec: share 0.00, KV read 0 of 0, segments 40, depth 3, "
        "plans 0 (+1 reused), fallbacks 3 (old: 1; new: 2)"
    )


@pytest.mark.parametrize("times", [1, 3])
def test_exported_counters_equal_the_totals_however_often(times: int) -> None:
    client = pytest.importorskip("prometheus_client")
    labels = {"model_name": f"exported {times} times", "tp_rank": 0}
    planner, fallbacks = Planner(), Counter()
    report = ServingReport(planner, fallbacks)
    for _ in range(times):
        planner.serve(10, read=30, stock=100)
        fallbacks["reason"] += 2
        report.export(SimpleNamespace(labels=labels))
        report.export(SimpleNamespace(labels=labels))

    def value(name: str, **more: str) -> float:
        wanted = {name: str(value) for name, value in (labels | more).items()}
        return client.REGISTRY.get_sample_value(f"sglang:codec_{name}", wanted)

    assert value("decode_steps_total") == 10 * times
    assert value("plans_total") == times
    assert value("plans_reused_total") == 9 * times
    assert value("plan_seconds_total") == pytest.approx(0.002 * times)
    assert value("plan_make_seconds_total") == pytest.approx(0.0013 * times)
    assert value("slowest_seconds") == pytest.approx(0.002)
    assert value("kv_tokens_read_total") == 30 * times
    assert value("kv_tokens_saved_total") == 70 * times
    assert value("fallbacks_total", reason="reason") == 2 * times
    assert value("share_ratio") == pytest.approx(0.7)
    assert (value("segments"), value("depth")) == (10, 3)


def test_a_failing_part_is_logged_once_and_leaves_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reports = Reports()
    assert reports.state() is None
    reports.use(ServingReport(Planner(), {}))
    for _ in range(3):
        reports.export(SimpleNamespace(labels=None))
    (record,) = caplog.records
    assert "its metrics failed and is off; it goes on serving" in record.getMessage()
    assert reports.line().startswith("codec: share ")
    assert reports.state()["steps"] == 0


def test_hooks_attach_once_however_often() -> None:
    apply_report_patches()
    apply_report_patches()
    assert [times_applied(patch) for patch in REPORT_PATCHES] == [1] * len(REPORT_PATCHES)
    filters = logging.getLogger(decode_line.MODULE).filters
    assert len([f for f in filters if isinstance(f, decode_line.DecodeLine)]) == 1


def test_what_cannot_be_hooked_is_one_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_line, "FUNCTION", "report_moved_away")
    target = "sglang.srt.managers.scheduler.Scheduler.gone"
    gone = Patch(target, HookType.AFTER, lambda *_: None, "it is silent", "a fact", "a condition")
    apply_report_patches((gone, *REPORT_PATCHES), extend_decode_line)
    (record,) = (r for r in caplog.records if r.name.startswith("sglang_codec"))
    assert record.levelname == "WARNING"
    assert "it is silent" in record.getMessage()
    assert "report_moved_away" in record.getMessage()
    assert [times_applied(patch) for patch in REPORT_PATCHES] == [1] * len(REPORT_PATCHES)


@pytest.fixture
def _reporting(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = Reports()
    reports.use(ServingReport(Planner(), {}))
    monkeypatch.setattr(decode_line, "REPORTS", reports)


@pytest.mark.usefixtures("_reporting")
@pytest.mark.parametrize(("function", "extended"), [(decode_line.FUNCTION, True), ("other", False)])
def test_only_the_decode_report_is_extended(function: str, extended: bool) -> None:
    record = logging.LogRecord("x", logging.INFO, "f", 1, "%d of %s", (3, "100%"), None, function)
    assert decode_line.DecodeLine().filter(record)
    assert record.getMessage().startswith("3 of 100%")
    assert ("codec: share" in record.getMessage()) is extended
