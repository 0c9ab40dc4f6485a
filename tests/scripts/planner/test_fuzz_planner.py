"""The long fuzz: its processes together make the plans that were asked for."""

from __future__ import annotations

import json
from pathlib import Path

import fuzz_planner
import pytest


def test_the_parts_are_summed(tmp_path: Path) -> None:
    out = tmp_path / "fuzz.json"
    words = ["--plans", "25", "--part", "15", "--seed", "3", "--json", str(out)]
    assert fuzz_planner.main(words) == 0
    report = json.loads(out.read_text())
    assert 25 <= report["counts"]["plans"] <= 40
    assert report["counts"]["largest batch"] <= 1024
    assert report["faults"] == []
    assert {"numpy", "numba"} <= set(report["versions"])


def test_faults_are_printed_and_end_it_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    probe = tmp_path / "probe.py"
    probe.write_text(
        'import json; print(json.dumps({"counts": {"plans": 2, "largest batch": 7}, '
        '"index_checks": True, "faults": ["seed 1: wrong"]}))'
    )
    monkeypatch.setattr(fuzz_planner, "PROBE", probe)
    assert fuzz_planner.main(["--plans", "2"]) == 1
    assert "seed 1: wrong" in capsys.readouterr().out
    probe.write_text("raise SystemExit(3)")
    with pytest.raises(SystemExit, match=r"probe.py --plans 2 --seed 0 ended with 3"):
        fuzz_planner.main(["--plans", "2"])
