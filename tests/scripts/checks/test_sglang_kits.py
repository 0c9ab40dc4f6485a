"""SGLang's kits are run as they are, in time, and their outcomes are told truly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import run_sglang_kits
import toy_kits
from kits.catalogue import NAMES
from kits.outcomes import Outcome
from kits.worker import Worker
from library.servers.server import ServerFailed
from run_sglang_kits import Results
from sglang_versions import REPOSITORY, SUPPORT, VERSIONS, run_python


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Any:
    worker = Worker(tmp_path_factory.mktemp("kits"))
    yield worker
    worker.close()


def kinds(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.test: outcome.outcome for outcome in outcomes}


def test_every_outcome_is_told(worker: Worker) -> None:
    outcomes, printed = worker.run("mixed", toy_kits.mixed, None, 60)
    assert kinds(outcomes) == {
        "test_1_passes": "passed",
        "test_2_fails": "failed",
        "test_3_raises": "failed",
        "test_4_is_skipped": "skipped",
        "test_5_fails_in_a_part": "failed",
    }
    reasons = {outcome.test: outcome.reason for outcome in outcomes}
    assert "one is not two" in reasons["test_2_fails"]
    assert "meta_info" in reasons["test_3_raises"]
    assert reasons["test_4_is_skipped"] == "needs a network"
    assert run_sglang_kits.PRINTED.findall(printed) == ["avg_kl_div=0.5"]


def test_a_kit_that_hangs_or_dies_costs_only_itself(worker: Worker) -> None:
    worker.run("mixed", toy_kits.mixed, None, 60)  # the process is up
    began = time.monotonic()
    outcomes, _ = worker.run("hanging", toy_kits.hanging, None, 1.0)
    assert time.monotonic() - began < 30
    assert kinds(outcomes) == {
        "test_1_passes": "passed",
        "test_2_hangs": "unfinished",
        "test_3_waits": "unfinished",
    }
    assert all("stopped after 1 s" in o.reason for o in outcomes[1:])
    outcomes, _ = worker.run("crashing", toy_kits.crashing, None, 60)
    assert kinds(outcomes) == {"test_crashes": "unfinished"}
    assert "ended with 7" in outcomes[0].reason
    outcomes, _ = worker.run("absent", toy_kits.absent, None, 60)
    assert [(o.outcome, o.reason) for o in outcomes] == [("failed", "ImportError: no such kit")]
    assert len(worker.run("mixed", toy_kits.mixed, None, 60)[0]) == 5


WHERE = {"server": "main"}


def head(command: str) -> dict[str, Any]:
    return {"versions": {"sglang": "1"}, "commit": "abc", "gpu": "cpu", "command": command}


def rows(*kinds_of_tests: str) -> list[Outcome]:
    return [Outcome(f"test_{i}", kind) for i, kind in enumerate(kinds_of_tests)]


def test_what_fails_with_the_stock_backend_too_is_no_failure(tmp_path: Path) -> None:
    results = Results.of(tmp_path / "kits.json", head("first"))
    for name in NAMES:
        results.add(name, "codec", (rows("passed", "failed", "unfinished"), ""), WHERE)
        results.add(name, "fa3", (rows("passed", "failed", "passed"), ""), {})
    assert results.failures() == [f"{name}: test_2" for name in NAMES]
    results.add(NAMES[0], "fa3", (rows("failed", "failed", "failed"), ""), {})
    assert f"{NAMES[0]}: test_2" not in results.failures()


def test_a_file_is_continued_and_complete_only_with_all_kits(tmp_path: Path) -> None:
    file = tmp_path / "kits.json"
    results = Results.of(file, head("first"))
    for name in NAMES[1:]:
        results.add(name, "codec", (rows("passed"), ""), WHERE)
    document = json.loads(file.read_text())
    assert (document["ok"], document["missing"]) == (False, [NAMES[0]])
    again = Results.of(file, head("second"))
    again.add(NAMES[0], "codec", (rows("passed", "skipped"), ""), WHERE)
    document = json.loads(file.read_text())
    assert (document["ok"], document["missing"]) == (True, [])
    assert document["commands"] == ["first", "second"]
    assert [row["kit"] for row in document["kits"]] == list(NAMES)
    assert document["kits"][0]["run"] == document["kits"][0]["passed"] == 1
    # of another commit nothing is taken over
    file.write_text(json.dumps(document | {"commit": "other"}))
    assert Results.of(file, head("third")).kits == {}


class FakeWorker:
    """A kit's outcome by its name: what it does with codec, and with the stock backend."""

    def __init__(self, kinds_of_kits: dict[str, tuple[str, str]], backends: list[str]) -> None:
        self.kinds, self.backends = kinds_of_kits, backends

    def run(self, name: str, *_: Any) -> tuple[list[Outcome], str]:
        ours, stock = self.kinds.get(name.removesuffix("-stock"), ("passed", "passed"))
        return rows(ours if self.backends[-1] == "codec" else stock), ""

    def close(self) -> None:
        pass


def test_servers_are_shared_restarted_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[tuple[str, str, str | None]] = []
    backends: list[str] = []

    @contextmanager
    def server(backend: str, flags: list[str], folder: Path, **_: Any) -> Iterator[Any]:
        backends.append(backend)
        started.append((folder.name, backend, os.environ.get("SGLANG_REQ_RUNNING_TIMEOUT")))
        assert flags[-1] == "--dtype=bfloat16"
        if folder.name == "sessions":
            raise ServerFailed("the server ended with 1: ValueError: no")
        process = SimpleNamespace(pid=1)
        yield SimpleNamespace(url="", process=process, startup_s=1.0, is_alive=True)

    def launch(model: Any, _folder: Path, flags: list[str]) -> Any:
        return SimpleNamespace(model=model.model, flags=tuple(flags), all_flags=flags)

    monkeypatch.setattr(run_sglang_kits, "running_server", server)
    monkeypatch.setattr(run_sglang_kits, "make_launch", launch)
    found = {
        "cache_hit": ("failed", "failed"),
        "radix_cache_server": ("failed", "passed"),
        "basic_scheduler_stress": ("unfinished", "passed"),
    }
    monkeypatch.setattr(run_sglang_kits, "Worker", lambda _folder: FakeWorker(found, backends))
    file = tmp_path / "kits.json"
    words = ["--model=m", "--json", str(file), "--logs", str(tmp_path), "--", "--dtype=bfloat16"]
    kits = [name for name in NAMES if not name.startswith("attention_unittest")]
    assert run_sglang_kits.main(["--only", ";".join(kits), *words]) == 1
    assert started == [
        # again after the kit that did not finish, then the stock one
        *[("main", "codec", None)] * 2,
        ("main", "fa3", None),
        ("long-context", "codec", None),
        ("sessions", "codec", None),
        ("short-sessions", "codec", None),
        ("waiting-limit", "codec", None),
        ("running-limit", "codec", "2"),
    ]
    document = json.loads(file.read_text())
    assert document["failures"] == [
        "basic_scheduler_stress: test_0",
        "radix_cache_server: test_0",
        "streaming_session: (the server)",
    ]
    assert "FAILED radix_cache_server" in capsys.readouterr().out
    compared = {row["kit"] for row in document["kits"] if "stock" in row}
    assert compared == {*found, "unified_radix_cache"}


def test_an_unknown_kit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_sglang_kits.main(["--model", "m", "--json", "x.json", "--only", "cache_hits"])
    assert "'cache_hits' is unknown: choose from attention_unittest;" in capsys.readouterr().err


def test_the_newest_sglang_has_the_kits_and_the_attention_kit_passes(tmp_path: Path) -> None:
    model, output = tmp_path / "tiny", tmp_path / "probe.json"
    make = [sys.executable, REPOSITORY / "scripts" / "serve" / "make_tiny_model.py", model]
    subprocess.run([*make, "--vocab-size=512"], check=True, capture_output=True)
    probe = [str(SUPPORT / "kits_probe.py"), str(model), str(output)]
    # SGLang's test package reads a number there
    done = run_python(*probe, sglang=VERSIONS[-1], CUDA_VISIBLE_DEVICES="0")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(output.read_text())
    dense = found["dense"]
    assert {name: how for name, how in dense.items() if how[0] != "passed"} == {}
    assert sum("replay" in name for name in dense) >= 3
    assert sum("extend" in name for name in dense) >= 8
    assert all(found["served"].values()), found["served"]
