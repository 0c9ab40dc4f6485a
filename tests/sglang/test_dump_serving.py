"""On the real scheduler: requests are served whatever becomes of the dump."""

from __future__ import annotations

import json
from pathlib import Path

from sglang_versions import SUPPORT
from warm_python import run_warm

from sglang_codec.dump import NOT_WRITTEN


def test_a_dump_that_fails_while_serving_costs_the_dump_only(tmp_path: Path) -> None:
    (tmp_path / "dumps").mkdir()
    output = tmp_path / "report.json"
    done = run_warm(
        SUPPORT / "dump_probe.py",
        str(tmp_path / "model"),
        str(output),
        SGLANG_CODEC_DUMP=str(tmp_path / "dumps" / "plan.json"),
    )
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(output.read_text())
    assert report["served"] == [[4, 4]] * 3
    assert report["left"] == ["plan.json"]
    assert report["failures"] > 0
    # once it can be written again it is, and says how often it could not
    assert report["fallbacks"] == {NOT_WRITTEN: report["failures"]}
    assert 0 < report["steps"][0] < report["steps"][1]
    assert done.stderr.count("could not be written") == 1
