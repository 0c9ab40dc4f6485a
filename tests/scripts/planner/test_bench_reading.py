"""The benchmark of reading: SGLang's own tree is read, and what one joins is found shared."""

from __future__ import annotations

import json
from pathlib import Path

import bench_reading
import pytest


def test_a_small_batch_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "reading.json"
    arguments = ["--rows", "12", "--depths", "3", "--joins", "3", "--json", str(report)]
    monkeypatch.setattr("sys.argv", ["bench_reading.py", *arguments])
    bench_reading.main()
    (case,) = json.loads(report.read_text())["cases"]
    assert case["reader"] in ("parent walk", "collect_path_info")
    # a root for all and two below it
    assert (case["rows"], case["nodes"]) == (12, 3)
    assert all(case[name] > 0 for name in ("unchanged", "join", "join_read", "all_new"))
