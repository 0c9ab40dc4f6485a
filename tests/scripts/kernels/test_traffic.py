"""DRAM traffic without a GPU: the profiler's CSV, the arithmetic, and what the script says."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import measure_traffic
import ncu
import pytest
import torch
from library.attention import tables, traffic
from library.attention.peers import ADAPTERS
from library.attention.problem import Problem
from library.attention.runner import Runner
from ncu import Kernel

from sglang_codec.kernels import por

# hand-made in the form of `ncu --csv --page raw --print-units base`
RAW = """==PROF== Connected to process 77 (/usr/bin/python3)
==PROF== Profiling "_pac_kernel" - 0: 0%....50%....100% - 1 pass
==PROF== Profiling "_por_kernel" - 1: 0%....50%....100% - 1 pass
==PROF== Disconnected from process 77
"ID","Process ID","Kernel Name","Grid Size","dram__bytes_read.sum","dram__bytes_write.sum"
"","","","","byte","byte"
"0","77","_pac_kernel","(33, 8, 1)","1,050,000","2,000"
"1","77","void merge<float, 4>(int, int)","(64, 1, 1)","30,000","1,000"
"""
LAUNCHES = [
    Kernel("_pac_kernel", {ncu.READ: 1_050_000.0, ncu.WRITE: 2000.0}),
    Kernel("void merge<float, 4>(int, int)", {ncu.READ: 30_000.0, ncu.WRITE: 1000.0}),
]
# a profiler that prints what a file holds, and lets the child's figures be written for it
STAND_IN = """#!{python}
import json, pathlib, sys
folder = pathlib.Path(__file__).parent
words = sys.argv[1:]
(folder / "calls").open("a").write(json.dumps(words) + "\\n")
log = pathlib.Path(words[words.index("--log-file") + 1])
log.write_text((folder / "log").read_text())
if (folder / "marks").exists():
    marks = pathlib.Path(words[words.index("--child") + 1])
    marks.write_text((folder / "marks").read_text())
print((folder / "stdout").read_text())
sys.exit(int((folder / "status").read_text()))
"""
MARKS = {
    "variant": "",
    "bytes": dict(zip(traffic.KINDS, (300_000, 10_000, 10_000, 5000, 5000), strict=True)),
    "total_bytes": 710_000,
    "err": 2e-3,
    "plan": {"parts": 3},
}


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a stand-in profiler that succeeds; a test changes what it should do."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "GPU")
    script = tmp_path / "ncu"
    script.write_text(STAND_IN.format(python=sys.executable))
    script.chmod(0o755)
    (tmp_path / "log").write_text(RAW)
    (tmp_path / "marks").write_text(json.dumps(MARKS))
    (tmp_path / "stdout").write_text("")
    (tmp_path / "status").write_text("0")
    return tmp_path


def run(folder: Path, *arguments: str) -> int:
    json_path = str(folder / "out" / "traffic.json")
    return measure_traffic.main(["--ncu", str(folder / "ncu"), "--json", json_path, *arguments])


def test_the_csv_gives_every_launch_with_its_counters() -> None:
    assert ncu.parse(RAW) == LAUNCHES
    scaled = RAW.replace('"byte","byte"', '"Kbyte","byte"').replace("1,050,000", "1,050")
    assert ncu.parse(scaled)[0] == LAUNCHES[0]


def test_a_csv_without_writes_still_has_reads() -> None:
    cut = RAW.replace(',"dram__bytes_write.sum"', "").replace('"byte","byte"', '"byte"')
    cut = cut.replace(',"2,000"\n', "\n").replace(',"1,000"\n', "\n")
    assert [kernel.metrics for kernel in ncu.parse(cut)] == [
        {ncu.READ: 1_050_000.0},
        {ncu.READ: 30_000.0},
    ]


@pytest.mark.parametrize(
    "text", ["", "==ERROR== no kernels were profiled.\n", RAW[: RAW.index('"0"')]]
)
def test_no_launch_is_an_error_that_quotes_the_profiler(text: str) -> None:
    with pytest.raises(ncu.RunFailed, match="profiled no kernel") as caught:
        ncu.parse(text)
    assert ("==ERROR==" in str(caught.value)) == ("==ERROR==" in text)


def test_a_value_that_is_not_in_bytes_is_an_error() -> None:
    with pytest.raises(ncu.RunFailed, match="expected bytes"):
        ncu.parse(RAW.replace('"byte","byte"', '"sector","byte"'))


def test_passes_are_the_most_of_any_kernel() -> None:
    assert ncu.passes(RAW) == 1
    assert (
        ncu.passes(RAW.replace('_por_kernel" - 1: 0%....50%....100% - 1 pass', "x - 3 passes")) == 3
    )
    assert ncu.passes("") == 1


def test_a_row_compares_reads_per_call_with_what_has_to_be_read() -> None:
    (row,) = measure_traffic.select("depth 6")
    options = argparse.Namespace(dtype="bfloat16", slots="scattered")
    merge = Kernel("_por_kernel", {ncu.READ: 30_000.0, ncu.WRITE: 0.0})
    facts = measure_traffic.Marks(**MARKS)
    kernels = [LAUNCHES[0], merge] * measure_traffic.REPEATS
    entry = measure_traffic.entry(row, "codec", options, kernels, facts)
    assert entry["launches"] == 2
    assert entry["read_bytes"] == 1_080_000
    assert (entry["read_bytes_pac"], entry["read_bytes_por"]) == (1_050_000, 30_000)
    assert entry["written_bytes"] == 2000
    assert entry["unique_read_bytes"] == 300_000 + 10_000 + 5000
    assert entry["per_request_read_bytes"] == 720_000
    assert entry["of_kv"] == pytest.approx(3.6)
    assert entry["of_unique"] == pytest.approx(1_080_000 / 315_000)
    assert entry["of_per_request"] == pytest.approx(1.5)
    assert entry["wrong"] is False
    *_, line = measure_traffic.lines([entry]).splitlines()
    assert "| codec | 1.08 | 0.00 | 0.30 | 0.32 | 0.72 | 3.600x | 3.429x | 1.500x |" in line
    broken = measure_traffic.Marks(**MARKS | {"err": None})
    no_writes = [Kernel("a", {ncu.READ: 3.0})] * measure_traffic.REPEATS
    entry = measure_traffic.entry(row, "flashinfer", options, no_writes, broken)
    assert entry["wrong"] is True
    assert entry["written_bytes"] is entry["read_bytes_pac"] is None
    assert "flashinfer (wrong output)" in measure_traffic.lines([entry])


def test_the_rows_span_the_tables() -> None:
    rows = measure_traffic.select("")
    assert len(rows) == len(measure_traffic.ROWS) == 6
    assert {row.table for row in rows} == {"codec", "fasttree", "pat", "controls"}
    assert len({row.name for row in rows}) == 6, "a child is told the name alone"


def test_a_child_runs_its_calls_inside_the_profiled_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    plan = {"parts": 7}

    def adapter(problem: Problem) -> list[Runner]:
        (exact,) = ADAPTERS["eager"](problem)

        def run(layer: int) -> torch.Tensor:
            events.append("run")
            return exact.run(layer)

        return [Runner(run, "a variant", notes={"plan": plan})]

    monkeypatch.setitem(measure_traffic.ADAPTERS, "codec", adapter)
    for name in ("start", "stop"):
        monkeypatch.setattr(torch.cuda.profiler, name, lambda name=name: events.append(name))
    monkeypatch.setattr(measure_traffic, "FLUSH_BYTES", 64)
    marks = tmp_path / "marks.json"
    options = measure_traffic.make_parser().parse_args(["--child", str(marks)])
    row = tables.Row("small", "tree", "4/2", *tables.parse_tree("1,3_20,4"))
    measure_traffic.child(row, "codec", options, torch.device("cpu"))
    assert events == ["run", *["start", "run", "stop"] * measure_traffic.REPEATS]
    facts = measure_traffic.Marks(**json.loads(marks.read_text()))
    assert (facts.variant, facts.plan) == ("a variant", plan)
    assert facts.err < 1e-2
    assert facts.bytes["kv"] == 32 * 2 * 2 * 128 * 2
    assert facts.bytes["partial_read"] == 7 * 4 * 129 * 4
    assert facts.total_bytes == 3 * 24 * 2 * 2 * 128 * 2


def test_the_merge_is_told_apart_by_its_kernels_name() -> None:
    assert hasattr(por, measure_traffic.MERGE)


def test_every_row_and_peer_runs_under_the_profiler(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_COMMIT", "abc")
    assert run(stand_in, "--slots", "contiguous") == 0
    calls = [json.loads(line) for line in (stand_in / "calls").read_text().splitlines()]
    assert len(calls) == 6 * 2
    first = " ".join(calls[0])
    assert "--profile-from-start off" in first
    assert "--cache-control none" in first
    assert "--clock-control none" in first
    assert "--slots contiguous" in first
    assert calls[1][calls[1].index("--peers") + 1] == "flashinfer"
    document = json.loads((stand_in / "out" / "traffic.json").read_text())
    assert document.keys() >= {"gpu", "versions", "commit", "command", "rows"}
    assert (document["gpu"], document["commit"], document["skipped"]) == ("GPU", "abc", [])
    assert [(row["name"], row["peer"]) for row in document["rows"][:2]] == [
        ("batch120k 64", "codec"),
        ("batch120k 64", "flashinfer"),
    ]
    assert document["rows"][0]["read_bytes"] == pytest.approx(1_080_000 / 3)


def test_counters_that_warm_their_own_l2_are_not_believed(
    stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stand_in / "log").write_text(RAW.replace("- 1 pass", "- 2 passes"))
    assert run(stand_in, "--row", "FT-7", "--peers", "codec") == 2
    calls = [json.loads(line) for line in (stand_in / "calls").read_text().splitlines()]
    assert [call[call.index("--metrics") + 1] for call in calls] == [
        f"{ncu.READ},{ncu.WRITE}",
        ncu.READ,
    ]
    assert "2 passes" in capsys.readouterr().err


def test_a_row_that_fails_leaves_the_others(
    stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stand_in / "status").write_text("1")
    (stand_in / "log").write_text("==ERROR== The application returned an error code (1).\n")
    assert run(stand_in, "--row", "FT-7") == 3
    document = json.loads((stand_in / "out" / "traffic.json").read_text())
    assert [entry["peer"] for entry in document["skipped"]] == ["codec", "flashinfer"]
    assert "error code (1)" in document["skipped"][0]["why"]
    (stand_in / "status").write_text("0")
    (stand_in / "log").write_text(RAW)
    (stand_in / "marks").unlink()
    assert run(stand_in, "--row", "FT-7", "--peers", "codec") == 3
    assert "ended before" in capsys.readouterr().err


def test_refused_counters_end_the_run(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stand_in / "status").write_text("1")
    (stand_in / "stdout").write_text(f"==ERROR== {ncu.DENIED} - The user does not have permission")
    assert run(stand_in) == 2
    assert len((stand_in / "calls").read_text().splitlines()) == 1
    assert ncu.DENIED in (said := capsys.readouterr().err)
    assert "run as root" in said


def test_a_machine_without_the_profiler_or_a_gpu_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(ncu, "PLACES", (str(tmp_path / "*" / "ncu"),))
    assert measure_traffic.main([]) == 2
    assert "ncu is not installed" in capsys.readouterr().err
    assert measure_traffic.main(["--ncu", "no-such-ncu"]) == 2
    assert "no-such-ncu is not installed" in capsys.readouterr().err
    (tmp_path / "2025.3").mkdir()
    (tmp_path / "2025.3" / "ncu").touch(0o755)
    assert ncu.find() == str(tmp_path / "2025.3" / "ncu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measure_traffic.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--row", "FT-99"], ["--peers", "codec,nobody"]])
def test_unknown_rows_and_peers_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        measure_traffic.main(arguments)
