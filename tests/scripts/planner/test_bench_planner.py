"""The planner's benchmark: what it plans is what the tables say."""

from __future__ import annotations

import json
from pathlib import Path

import bench_planner
import pytest
from library.attention import tables

from sglang_codec.planning.forest import PrefixForest


@pytest.mark.parametrize("tails", [True, False])
def test_forests_have_the_tables_tokens(tails: bool) -> None:
    for row in tables.select(["codec", "pat"]):
        paths, lengths = bench_planner.radix_paths(row, tails=tails)
        forest = PrefixForest.from_radix_paths(paths, lengths)
        assert forest.batch == row.batch
        assert forest.total_tokens == row.total_tokens
        assert forest.unique_tokens == row.unique_tokens


def test_the_report_compares_with_an_earlier_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier, report = tmp_path / "earlier.json", tmp_path / "report.json"
    head = {"table": "", "name": "", "heads": ""}
    rows = [
        head | {"table": r.table, "name": r.name, "heads": r.heads, "plan": {"makespan_us": 10.0}}
        for r in tables.all_rows()
    ]
    earlier.write_text(json.dumps({"rows": rows}))
    arguments = ["--against", str(earlier), "--repeats", "1", "--json", str(report)]
    assert bench_planner.main(arguments) == 0
    written = json.loads(report.read_text())
    assert len(written["rows"]) == len(rows)
    assert all(0 < row["balance"] <= 1 for row in written["rows"])
    row = written["rows"][0]
    assert row["of_earlier"] == pytest.approx(row["makespan_us"] / 10, abs=1e-3)
    assert "of the earlier plans'" in capsys.readouterr().out
