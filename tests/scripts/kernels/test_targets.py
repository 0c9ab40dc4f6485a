"""Targets over a report's rows: each verdict both ways, and what says nothing about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import table_kernels
import targets
from library.attention import traffic
from targets import Verdict

REPORT = Path(__file__).resolve().parents[3] / "docs" / "results" / "kernels_h100.json"


def make_row(table: str = "codec", name: str = "row", heads: str = "32/8", **changes) -> dict:
    """A row that meets every target: limit 100, codec 105, stock 500, peers 200, batch 16."""
    row = {
        "table": table,
        "name": name,
        "heads": heads,
        "dtype": "bfloat16",
        "slots": "scattered",
        "batch": 16,
        "limit_us": 100.0,
        "bandwidth_us": 100.0,
        "compute_us": 50.0,
        "bytes": dict(zip(traffic.KINDS, (1000, 50, 50, 200, 200), strict=True)),
        "us": {"codec": 105.0, "flashinfer": 500.0, "fa3": 600.0, "cascade": 200.0},
        "wrong": [],
        "why": {},
    }
    row["us"] |= {"fasttree": 200.0, "pat": 200.0}
    return row | changes


def with_us(row: dict, **us: float) -> dict:
    return row | {"us": row["us"] | us}


def full_report() -> list[dict]:
    """Rows that meet every target there is."""
    rows = [make_row("codec"), make_row("pat"), make_row("controls")]
    rows += [make_row("fasttree", heads=heads) for heads in ("16/1", "32/8", "32/32")]
    rows.append(with_us(make_row("pat", "wide", batch=1024), codec=190.0))
    short = make_row("codec", "short", limit_us=4.0, bandwidth_us=4.0)
    rows.append(with_us(short, codec=11.9, flashinfer=60.0, cascade=50, fasttree=40, pat=40))
    return rows


def verdict(rows: list[dict], part: str) -> Verdict:
    (found,) = [v for v in targets.evaluate(rows) if part in v.goal]
    return found


def test_a_report_can_reach_everything() -> None:
    verdicts = targets.evaluate(full_report())
    assert [v.goal for v in verdicts if not v.reached] == []
    assert len(verdicts) == 15
    assert not any(v.misses for v in verdicts)
    assert "15 of 15 targets reached, 0 not measured" in targets.report(full_report())


def test_nothing_measured_is_neither_reached_nor_missed() -> None:
    assert {v.reached for v in targets.evaluate([])} == {None}
    without_pat = [row | {"us": {"codec": 1.0, "flashinfer": 2.0}} for row in full_report()]
    assert verdict(without_pat, "faster than pat").reached is None
    assert "faster than pat on every row: not measured" in targets.report(without_pat)


@pytest.mark.parametrize(
    ("table", "heads", "part", "goal"),
    [
        ("codec", "32/8", "codec at all heads", 1.9),
        ("fasttree", "16/1", "fasttree 16/1", 3.5),
        ("fasttree", "32/32", "fasttree 32/32", 3.5),
        ("fasttree", "32/8", "fasttree at all heads", 3.5),
        ("pat", "32/8", "pat 32/8", 2.8),
    ],
)
def test_mean_gains_are_geometric_and_of_the_best_stock_backend(
    table: str, heads: str, part: str, goal: float
) -> None:
    def rows(factor: float) -> list[dict]:
        # gains of goal * factor in the geometric mean, far more in the arithmetic one
        return [
            with_us(make_row(table, name, heads), codec=100.0, flashinfer=us * factor, fa3=1e4)
            for name, us in (("slow", 100 * goal / 8), ("fast", 100 * goal * 8))
        ]

    assert verdict(rows(1.01), part).reached is True
    assert verdict(rows(0.99), part).reached is False
    assert "over 2 rows" in verdict(rows(1.0), part).found


def test_other_heads_do_not_count_for_a_head_configuration() -> None:
    lost = with_us(make_row("pat", heads="64/8"), flashinfer=10.0)
    assert verdict([make_row("pat"), lost], "pat 32/8").reached is True
    lost = with_us(make_row("fasttree", heads="16/1"), flashinfer=10.0)
    rows = [make_row("fasttree"), lost]
    assert verdict(rows, "fasttree 32/8").reached is True
    assert verdict(rows, "fasttree at all heads").reached is False


def test_a_wrong_output_is_no_rival_and_no_result() -> None:
    rows = [with_us(make_row(wrong=["flashinfer"]), flashinfer=1.0)]
    assert verdict(rows, "no row below").reached is True
    wrong = make_row(wrong=["codec"])
    assert verdict([wrong], "no row below").reached is None
    found = verdict([make_row(), wrong, make_row(us={"flashinfer": 1.0})], "its output is right")
    assert found.reached is False
    assert "1 of 3 rows" in found.found


def test_losing_rows_are_named_worst_first() -> None:
    rows = [
        with_us(make_row(name=f"loses {us}"), codec=100.0, flashinfer=us)
        for us in (96.0, 50.0, 97.0, 98.0)
    ]
    found = verdict(rows, "no row below")
    assert found.reached is False
    assert [miss.split("loses ")[1].split()[0] for miss in found.misses] == ["50.0", "96.0"]
    assert "2 of 4 rows, worst 0.50x, median 0.96x" in found.found
    many = [with_us(make_row(name=str(i)), flashinfer=1.0) for i in range(targets.WORST + 3)]
    assert "and 3 more" in verdict(many, "no row below").text()


@pytest.mark.parametrize(
    ("batch", "codec", "reached"),
    [(256, 117.0, True), (256, 118.0, False), (1, 118.0, False), (257, 199.0, None)],
)
def test_share_of_the_limit_up_to_256_requests(
    batch: int, codec: float, reached: bool | None
) -> None:
    rows = [with_us(make_row(batch=batch), codec=codec)]
    assert verdict(rows, "at least 85%").reached is reached


def test_larger_batches_are_judged_with_and_without_their_other_bytes() -> None:
    # KV 100 us, everything 150 us at bandwidth
    for codec, alone, counted in ((199.0, True, True), (201.0, False, True), (301.0, False, False)):
        rows = [with_us(make_row(batch=1024), codec=codec)]
        assert verdict(rows, "of the limit of KV alone").reached is alone
        assert verdict(rows, "with Q, O and partials").reached is counted
    compute_bound = with_us(make_row(batch=1024, compute_us=400.0, limit_us=400.0), codec=790.0)
    assert verdict([compute_bound], "with Q, O and partials").reached is True
    assert verdict([make_row(batch=256)], "with Q, O and partials").reached is None


def test_distance_counts_for_short_rows_of_few_requests() -> None:
    def rows(codec: float, **changes) -> list[dict]:
        return [with_us(make_row(limit_us=29.9, **changes), codec=codec)]

    part = "no row further than 8 us"
    assert verdict(rows(37.8), part).reached is True
    assert verdict(rows(38.0), part).reached is False
    assert verdict(rows(38.0), part).misses[0].startswith("8.1 us")
    assert verdict(rows(380.0, batch=64), part).reached is False
    assert verdict(rows(380.0, batch=65), part).reached is None
    assert verdict([with_us(make_row(limit_us=30.0), codec=99.0)], part).reached is None
    near, far = rows(35.0, name="near")[0], rows(50.0, name="far")[0]
    assert "worst 20.1 us, median 12.6 us" in verdict([near, far], part).found


@pytest.mark.parametrize("peer", ["cascade", "fasttree", "pat"])
def test_every_prefix_aware_peer_is_a_target_of_its_own(peer: str) -> None:
    row = make_row()
    lost = with_us(make_row(name="lost"), **{peer: 104.0})
    skipped = make_row(name="skipped") | {"us": {"codec": 100.0, "flashinfer": 500.0}}
    found = verdict([row, lost, skipped], f"faster than {peer} ")
    assert found.reached is False
    assert len(found.misses) == 1
    assert "lost" in found.misses[0]
    assert "1 of 2 rows" in found.found
    assert "not run or wrong on 1" in found.found
    assert verdict([with_us(row, **{peer: 105.0})], f"faster than {peer} ").reached is False
    for other in {"cascade", "fasttree", "pat"} - {peer}:
        assert verdict([row, lost, skipped], f"faster than {other} ").reached is True


def test_layouts_and_dtypes_are_judged_apart() -> None:
    slow = [with_us(row, flashinfer=1.0) | {"slots": "contiguous"} for row in full_report()]
    half = [row | {"dtype": "float16"} for row in full_report()]
    text = targets.report([*full_report(), *slow, *half])
    assert "bfloat16, scattered KV slots: 15 of 15" in text
    assert "float16, scattered KV slots: 15 of 15" in text
    assert "bfloat16, contiguous KV slots: 8 of 15" in text


def test_the_recorded_report_is_judged(capsys: pytest.CaptureFixture[str]) -> None:
    assert table_kernels.main([str(REPORT), "--targets"]) == 0
    text = capsys.readouterr().out
    rows = json.loads(REPORT.read_text())["rows"]
    assert text.count("\ntarget ") == 15 * len(targets.by_layout(rows))
    assert table_kernels.main([str(REPORT), "--bytes"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows)
