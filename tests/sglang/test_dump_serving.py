"""On the real scheduler: requests are served whatever becomes of the dump."""

from __future__ import annotations

from pathlib import Path

from warm_python import run_probe

from sglang_codec.dump import NOT_WRITTEN


def test_a_dump_that_fails_while_serving_costs_the_dump_only(tmp_path: Path) -> None:
    (tmp_path / "dumps").mkdir()
    dump = str(tmp_path / "dumps" / "plan.json")
    report, log = run_probe("dump_probe", tmp_path, SGLANG_CODEC_DUMP=dump)
    assert report["served"] == [[4, 4]] * 3
    assert report["left"] == ["plan.json"]
    assert report["failures"] > 0
    # once it can be written again it is, and says how often it could not
    assert report["fallbacks"] == {NOT_WRITTEN: report["failures"]}
    assert 0 < report["steps"][0] < report["steps"][1]
    assert log.count("could not be written") == 1
