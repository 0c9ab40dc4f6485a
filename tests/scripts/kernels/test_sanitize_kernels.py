"""The sanitizer's script without a GPU: its parser, its verdicts, and tools that misbehave."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sanitize_kernels as script

# hand-made in the form of compute-sanitizer's logs
MEMCHECK = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at _por_kernel+0x120 in por.py:30
=========     by thread (0,0,0) in block (3,0,0)
=========     Access at 0x7f00 is out of bounds
=========
========= Invalid __global__ read of size 4 bytes
=========     at _por_kernel+0x180 in por.py:30
=========     by thread (1,0,0) in block (3,0,0)
=========
========= ERROR SUMMARY: 2 errors
"""
RACECHECK = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at _pac_hopper_kernel+0x10 in pac_hopper.py:1
=========     and Read access at _pac_hopper_kernel+0x50 in pac_hopper.py:9 [64 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
FOREIGN = MEMCHECK.replace("_por_kernel+", "void at::native::vectorized<(int)8>(int, T2)+")
CLEAN = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
PASSED = "....  [100%]\n4 passed, 2 deselected in 3.21s\n"
# prints and logs what files beside it hold, and can take its time
STAND_IN = """#!{python}
import pathlib, sys, time
folder = pathlib.Path(__file__).parent
words = sys.argv[1:]
pathlib.Path(words[words.index("--log-file") + 1]).write_text((folder / "log").read_text())
print((folder / "said").read_text(), flush=True)
time.sleep(float((folder / "seconds").read_text()))
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A sanitizer with nothing to report."""
    program = tmp_path / "compute-sanitizer"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    for name, text in (("log", CLEAN), ("said", PASSED), ("seconds", "0")):
        (tmp_path / name).write_text(text)
    return program


def test_what_a_tool_reports_is_counted_by_kernel() -> None:
    outcome = script.parse("memcheck", "", PASSED, MEMCHECK)
    assert (outcome.errors, outcome.passed, outcome.failed) == (2, 4, 0)
    assert outcome.findings == {"Invalid __global__ read of size 4 bytes | _por_kernel": 2}
    assert not outcome.is_clean
    assert outcome.verdict.startswith("memcheck: NOT CLEAN (2 errors, 4 tests passed, 0 failed")
    outcome = script.parse("racecheck", "", PASSED, RACECHECK)
    assert outcome.errors == 1
    (finding,) = outcome.findings
    assert finding.endswith("| _pac_hopper_kernel")


@pytest.mark.parametrize(
    ("said", "log", "is_clean"),
    [
        (PASSED, CLEAN, True),
        ("F...  [100%]\n1 failed, 3 passed in 3.21s\n", CLEAN, False),
        ("no tests ran in 0.1s\n", CLEAN, False),
        (PASSED, "", False),
        (PASSED, MEMCHECK, False),
        (PASSED, FOREIGN, True),
        (PASSED, FOREIGN.replace("2 errors", "3 errors"), False),
    ],
)
def test_clean_is_a_summary_of_nothing_over_tests_that_passed(
    said: str, log: str, is_clean: bool
) -> None:
    assert script.parse("memcheck", "", said, log).is_clean == is_clean


def test_a_tool_that_takes_too_long_leaves_what_it_had(stand_in: Path) -> None:
    folder = stand_in.parent
    (folder / "said").write_text("...")
    (folder / "log").write_text(MEMCHECK.partition("========= ERROR")[0])
    (folder / "seconds").write_text("600")
    outcome = script.run_tool("memcheck", [str(stand_in)], ["test_por.py"], 2.0)
    assert outcome.stopped == "stopped after 2 s"
    assert (outcome.passed, outcome.errors) == (3, None)
    assert sum(outcome.findings.values()) == 2
    assert outcome.verdict.startswith("memcheck: not done (no summary, 3 tests passed")


def test_the_command_can_be_repeated(stand_in: Path) -> None:
    outcome = script.run_tool("memcheck", [str(stand_in)], ["test_por.py"], 60.0)
    assert outcome.is_clean
    assert outcome.command.startswith(
        "compute-sanitizer --tool memcheck --report-api-errors no --log-file log "
        "python -m pytest -q"
    )
    assert outcome.command.endswith("tests/kernels/test_por.py")
    assert (
        "--report-api-errors" not in script.run_tool("racecheck", [str(stand_in)], [], 60).command
    )


def test_every_tool_has_a_line_and_a_row(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(script.results, "gpu_name", lambda _: "a GPU")
    report = stand_in.parent / "report.json"
    run = script.run_tool

    def run_tool(tool: str, prefix: list[str], *rest: object) -> script.Outcome:
        if tool == "initcheck":
            (stand_in.parent / "log").write_text(MEMCHECK)
        # what was done before is in the file by now
        assert tool == script.NONE or json.loads(report.read_text())["rows"]
        return run(tool, prefix or [str(stand_in)], *rest)

    monkeypatch.setattr(script, "run_tool", run_tool)
    arguments = ["--sanitizer", str(stand_in), "--json", str(report), "--cases", "test_por.py"]
    assert script.main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        "no sanitizer: clean",
        "memcheck: clean",
        "racecheck: clean",
        "initcheck: NOT CLEAN",
    ]
    document = json.loads(report.read_text())
    assert document["gpu"] == "a GPU"
    assert {"torch", "triton", "compute-sanitizer"} <= document["versions"].keys()
    assert document["commit"]
    assert [row["errors"] for row in document["rows"]] == [0, 0, 0, 2]
    assert all(row["tests"] == ["test_por.py"] for row in document["rows"])
    assert script.main([*arguments, "--tools", "racecheck,memcheck"]) == 1


def test_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--sanitizer", str(tmp_path / "nowhere")]) == 2
    assert "compute-sanitizer is not installed" in capsys.readouterr().out
    monkeypatch.setattr(script.torch.cuda, "is_available", lambda: False)
    assert script.main(["--sanitizer", sys.executable]) == 2
    assert "there is no CUDA GPU" in capsys.readouterr().out


def test_every_chosen_test_exists() -> None:
    """An id that no longer names a test would silently check less."""
    files = sorted({case.partition("::")[0] for case in script.CASES})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(f"{script.KERNELS}/{file}" for file in files)],
        cwd=script.REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    # what needs a GPU is not collected here
    found = [line for line in done.stdout.splitlines() if "::" in line]
    for case in script.CASES:
        if case.partition("::")[2]:
            assert any(line.startswith(f"{script.KERNELS}/{case}") for line in found), case
        else:
            assert (script.REPOSITORY / script.KERNELS / case).exists()
