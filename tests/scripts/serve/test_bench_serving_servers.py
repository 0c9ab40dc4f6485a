"""The serving benchmark from its command line: with a stand-in for SGLang's server, and once with
the real one on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bench_serving
import fake_sglang
import pytest
import torch
from library.servers import server, sglang_benchmark
from library.servers.clients import GenerationError, ServerClient
from library.servers.server import ServerFailed, running_server
from serving import stock_bench

PROGRAM = Path(bench_serving.__file__)
FATAL = f"1_{fake_sglang.FATAL_TOKENS}"
TREE = "1,2,4_16,8,8"


@pytest.fixture
def fake_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PROGRAM", (fake_sglang.__file__,))


class Bench:
    """Runs of the program with one result file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.json = folder, folder / "serving.json"

    def __call__(self, *words: str) -> int:
        common = ["--shape=tiny", f"--json={self.json}", f"--logs={self.folder / 'logs'}"]
        common += ["--steps=24", "--stream-interval=1", "--repeats=2"]
        return bench_serving.main([*common, *words])

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.json.read_text())

    def argv(self, job: str) -> str:
        (log,) = (self.folder / "logs" / job).glob("server-*.log")
        return log.read_text().splitlines()[0]

    def rows(self, backend: str) -> dict[str, dict[str, Any]]:
        return {r["workload"]: r for r in self.document["rows"] if r["backend"] == backend}


@pytest.fixture
def bench(tmp_path: Path, fake_server: None) -> Bench:
    return Bench(tmp_path)


def test_every_row_has_its_figures(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    picture = bench.folder / "serving.png"
    words = ("--backends=stock,codec", "--workloads", TREE, "3_8", "--bandwidth=3")
    assert bench(*words, f"--plot={picture}") == 0
    assert [r["backend"] for r in bench.document["rows"]] == ["stock"] * 4 + ["codec"] * 4
    for row in bench.document["rows"]:
        # what the stand-in takes per step, seen by the client and logged by it
        assert 1e3 * fake_sglang.STEP_S <= row["tpot_ms"] < 2e3 * fake_sglang.STEP_S
        assert row["tpot_scheduler_ms"] == pytest.approx(1e3 * fake_sglang.STEP_S, rel=0.01)
        # chunks of a step come one after the other, so the ends of the window may lack one
        assert 21 <= row["steady_steps"] <= 23
        assert row["cuda_graph"] is True
        assert row["output_tokens"] == 24 * row["batch"] == 24 * len(row["outputs"])
        assert row["bound_ms"] > 0
    tree = bench.rows("codec")[TREE]
    assert (tree["shared_tokens"], tree["private_tokens"]) == (24, 8)
    assert tree["decode_steps"] == 23
    saved = tree["kv_tokens_stock"] - tree["kv_tokens_read"]
    assert saved == 23 * fake_sglang.SAVED_TOKENS
    # the stand-in counts what a stock backend reads as the benchmark does
    assert tree["kv_tokens_stock"] == bench.rows("stock")[TREE]["kv_tokens_stock"]
    assert tree["same_outputs"] == {"reference": "stock", "identical": 4, "compared": 4}
    assert str(bench.folder) not in bench.json.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "| 1,2,4_16,8,8 | 4 | 24 + 8 |" in capsys.readouterr().out


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_servers_side_by_side(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--backends=stock,codec,odd", f"--workloads={TREE}", "--gpus=0,1") == 0
    rows = {backend: bench.rows(backend)[TREE] for backend in ("stock", "codec", "odd")}
    assert {row["gpu"] for row in rows.values()} == {"0", "1"}
    assert {row["cores"] for row in rows.values()} == {len(os.sched_getaffinity(0)) // 2}
    assert rows["codec"]["same_outputs"]["identical"] == 4
    assert rows["odd"]["same_outputs"]["identical"] == 3
    printed = capsys.readouterr().out
    assert all(f"GPU {gpu}: " in printed for gpu in (0, 1))


def test_other_tokens_are_counted(bench: Bench) -> None:
    assert bench("--backends=stock,odd", f"--workloads={TREE}") == 0
    assert bench.rows("odd")[TREE]["same_outputs"]["identical"] == 3


def test_a_later_command_measures_only_what_is_missing(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--backends=stock", "--workloads=3_8") == 0
    first = bench.rows("stock")
    assert bench("--backends=stock,codec", "--workloads", "3_8", "2_8", "--append") == 0
    assert bench.rows("stock")["3_8"] == first["3_8"] | {"bound": None}
    assert set(bench.rows("codec")) == {"short-2", "short-3", "3_8", "2_8"}
    assert len(bench.document["commands"]) == 2
    capsys.readouterr()
    assert bench("--backends=stock,codec", "--workloads", "3_8", "2_8", "--append") == 0
    assert "the server is up" not in capsys.readouterr().out
    # with other steps it is another measurement
    assert bench("--backends=stock", "--workloads=3_8", "--append", "--steps=12") == 0
    assert bench.rows("stock")["3_8"]["steps"] == 12


def test_a_workload_that_ends_the_server_costs_only_itself(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--backends=stock", "--workloads", FATAL, "3_8") == 1
    rows = bench.rows("stock")
    assert "why" in rows[FATAL]
    assert rows["3_8"]["tpot_ms"] > 0
    printed = capsys.readouterr().out
    assert "ValueError: a prompt that it cannot bear" in printed
    assert f"not measured (see above): {FATAL} on stock" in printed
    assert printed.count("the server is up") == 2


def test_a_server_that_does_not_start_costs_only_its_rows(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--backends=broken,stock", "--workloads=3_8") == 1
    why = "the server ended with 1: RuntimeError: it is broken"
    assert bench.rows("broken")["3_8"]["why"] == why
    assert bench.rows("stock")["3_8"]["tpot_ms"] > 0
    assert "Traceback" in capsys.readouterr().out


def test_requests_that_are_too_short_to_measure_are_said_so(bench: Bench) -> None:
    assert bench("--backends=stock", "--workloads=3_8", "--steps=3") == 1
    assert "raise --steps" in bench.rows("stock")["3_8"]["why"]


def test_trees_run_with_the_first_variant_only(bench: Bench) -> None:
    words = ("--backends=stock", "--workloads=3_8", "--variant=default=", "--variant=other=--x")
    assert bench(*words) == 0
    assert {row["variant"] for row in bench.document["rows"]} == {"default"}
    assert bench(*words, "--every-variant", "--append") == 0
    assert [row["variant"] for row in bench.document["rows"]] == ["default"] * 2 + ["other"] * 2
    # the variant's flags came to its server only
    assert "--x" in bench.argv("other-stock")
    assert "--x" not in bench.argv("default-stock")


def test_nothing_is_started_after_the_time_limit(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--backends=stock", "--workloads=3_8", "--time-limit=0.000001") == 1
    printed = capsys.readouterr().out
    assert "the time limit is reached, go on with --append" in printed
    assert "the server is up" not in printed


def test_a_file_of_another_configuration_is_not_continued(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--backends=stock", "--workloads=3_8") == 0
    with pytest.raises(SystemExit):
        bench("--backends=stock", "--workloads=3_8", "--append", "--", "--page-size=16")
    assert "server_flags" in capsys.readouterr().err


def test_a_server_is_gone_after_its_block(tmp_path: Path, fake_server: None) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        running_server("stock", [], tmp_path, start_limit_s=30) as running,
    ):
        raise KeyboardInterrupt
    assert not running.is_alive
    with pytest.raises(GenerationError, match="ConnectionError"):
        ServerClient(running.url).post("/flush_cache")


def test_a_server_that_is_not_ready_in_time_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PROGRAM", ("-c", "import time; print('slow'); time.sleep(60)"))
    started = time.monotonic()
    with (
        pytest.raises(ServerFailed, match="did not answer in time"),
        running_server("stock", [], tmp_path, start_limit_s=0.5),
    ):
        pass
    assert time.monotonic() - started < 30


def test_arrivals_are_sglangs_own_benchmark(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs offline, and gives every rate, and so every server, the same prompts."""
    words = ["--workloads=arrivals", "--arrivals=2x2,16,8,5", "--request-rates=40,50"]
    assert bench(*words, "--backends=codec", "--variant=few=--max-running-requests=9") == 0
    rows = bench.rows("codec")
    assert list(rows) == ["arrivals-40", "arrivals-50"]
    for row in rows.values():
        assert row["variant"] == "few"
        assert (row["requests"], row["output_tokens"]) == (4, 20)
        # two groups of 16 common and 8 own tokens: every prompt has what was asked for
        assert row["prompt_tokens"] == 4 * 24
        assert [run["output_tokens"] for run in row["runs"]] == [20, 20]
        pair = [run["tpot_ms"] for run in row["runs"]]
        assert row["tpot_ms"] == pytest.approx(sum(pair) / 2, rel=1e-3)
        assert row["goodput"]["share"] == 1.0
        # other prompts in each run
        assert len(row["outputs"]) == 8
        assert row["outputs"][:4] != row["outputs"][4:]
        assert row["decode_steps"] > 0
    assert rows["arrivals-40"]["outputs"] == rows["arrivals-50"]["outputs"]
    assert "| arrivals-50, few | 4 | 16 + 8 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("print('one'); raise OSError('no such option')", "ended with 1: OSError: no such option"),
        ("print('nothing was written')", "ended with 0: nothing was written"),
        ("import time; time.sleep(60)", "took more than 2 s"),
    ],
)
def test_an_error_of_sglangs_benchmark_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
    # a module per case: the process keeps what it has imported
    (tmp_path / f"{tmp_path.name}.py").write_text(f"def cli_main():\n    {content}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sglang_benchmark, "MODULE", tmp_path.name)
    with pytest.raises(stock_bench.BenchmarkFailed, match=message):
        stock_bench.run([], tmp_path, limit_s=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU flags are for no GPU")
def test_the_real_server_with_codec(tmp_path: Path) -> None:
    words = ["--shape=tiny", "--backends=codec", "--workloads=1,3_24,4", "--steps=8"]
    words += [f"--json={tmp_path / 'serving.json'}", f"--logs={tmp_path / 'logs'}"]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {r["workload"]: r for r in json.loads((tmp_path / "serving.json").read_text())["rows"]}
    tree = rows["1,3_24,4"]
    assert tree["tpot_ms"] > 0
    # 24 tokens are read once for 3 requests, and nothing else could be shared
    steps = tree["decode_steps"]
    assert steps in (7, 8)  # the overlap scheduler may add one
    assert tree["kv_tokens_stock"] == sum(3 * (28 + step) for step in range(1, steps + 1))
    assert tree["kv_tokens_stock"] - tree["kv_tokens_read"] == steps * 2 * 24
    assert tree["fallbacks"] == {}
    assert rows["short-3"]["kv_tokens_read"] == rows["short-3"]["kv_tokens_stock"]
