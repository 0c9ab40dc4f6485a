"""The benchmark of reading: SGLang's own tree is read, and what one joins is found shared."""

from __future__ import annotations

import json
from pathlib import Path

import bench_reading
import pytest


def test_a_small_batch_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "reading.json"
    arguments = ["--rows", "12", "--depths", "3", "--joins", "3", "--cold", "--json", str(report)]
    monkeypatch.setattr("sys.argv", ["bench_reading.py", *arguments])
    bench_reading.main()
    (case,) = json.loads(report.read_text())["cases"]
    assert case["reader"] in ("parent walk", "collect_path_info")
    # a root for all and two below it
    assert (case["rows"], case["nodes"]) == (12, 3)
    for step in ("join", "moved", "unchanged", "all_new"):
        stages = case[step]
        assert stages["describe"] > 0
        assert stages["read"] > 0 or step == "unchanged"
        assert stages["make"] > 0
    # nothing is read for a step that goes on
    assert case["unchanged"]["read"] == 0
