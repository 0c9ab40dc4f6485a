"""What compute-sanitizer prints is read, and a run that was cut short is not called clean."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import sanitize_kernels

# stands in for the program: finds in the test file what it shall print
FAKE = """\
import os, subprocess, sys, time
words = sys.argv[1:]
tool = words[words.index("--tool") + 1]
text = open(words[-1]).read()
print("=== COMPUTE-SANITIZER".replace("===", "=" * 9))
print("alone" if "PYTORCH_NO_CUDA_MEMORY_CACHING" in os.environ else "cached")
if "bad" in text and tool == "memcheck":
    print("=" * 9, "Invalid __global__ read of size 2 bytes")
if "slow" in text or "interrupted" in text:
    sys.stdout.flush()
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    (time.sleep(60) if "slow" in text else subprocess.run(sleep, stderr=subprocess.DEVNULL))
print("1 failed, 2 passed in 0.50s" if "wrong" in text else "3 passed in 0.50s")
if tool == "racecheck":
    print("=" * 9, "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)")
else:
    print("=" * 9, "ERROR SUMMARY:", 2 * ("bad" in text), "errors")
"""


def run(tmp_path: Path, *texts: str, limit: float = 30) -> tuple[int, dict[str, Any]]:
    fake, files = tmp_path / "sanitizer", []
    fake.write_text(f"#!{sys.executable}\n{FAKE}")
    fake.chmod(0o755)
    for number, text in enumerate(texts):
        files.append(tmp_path / f"test_{number}.py")
        files[-1].write_text(text)
    out = tmp_path / "out.json"
    words = ["--sanitizer", str(fake), "--json", str(out), "--logs", str(tmp_path / "logs")]
    words += [f"--time-limit={limit}", "--files", *map(str, files)]
    return sanitize_kernels.main(words), json.loads(out.read_text())


def test_nothing_reported_is_clean(tmp_path: Path) -> None:
    status, document = run(tmp_path, "good about a graph", "torch.cuda.graph")
    assert (status, document["ok"]) == (0, True)
    assert [(row["reports"], row["tests"]) for row in document["runs"]] == [
        (0, "3 passed in 0.50s")
    ] * 6
    logs = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert "alone" in logs["memcheck-test_0.log"]
    assert "cached" in logs["memcheck-test_1.log"]


@pytest.mark.parametrize(
    ("text", "reports", "bad_runs"),
    [("bad", 2, 2), ("wrong", 0, 3), ("slow", None, 3), ("interrupted", 0, 3)],
)
def test_reports_failures_and_cut_runs_are_not(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    reports: int | None,
    bad_runs: int,
) -> None:
    monkeypatch.setattr(sanitize_kernels, "SUMMING_UP_S", 2)
    status, document = run(tmp_path, text, limit=3)
    assert (status, document["ok"]) == (1, False)
    memcheck = document["runs"][0]
    assert memcheck["reports"] == reports
    clean = [sanitize_kernels.Checked(**row).is_clean for row in document["runs"]]
    assert clean.count(False) == bad_runs
    if text == "bad":
        assert memcheck["first"] == ["Invalid __global__ read of size 2 bytes"]


def test_the_files_are_there() -> None:
    assert all((sanitize_kernels.ROOT / file).is_file() for file in sanitize_kernels.FILES)
