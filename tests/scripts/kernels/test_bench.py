"""The kernel benchmark without a GPU: tables, problems, bookkeeping of peers, report, plots."""

from __future__ import annotations

import json
from pathlib import Path

import bench_kernels
import numpy as np
import plot_kernels
import pytest
import table_kernels
import torch
from library import results
from library.attention import measure, summary, tables, timing, traffic, tree_peers
from library.attention.peers import PREFIX_AWARE
from library.attention.problem import KVPool, Problem, layers_to_stay_cold
from library.attention.runner import Runner, Unsupported
from matplotlib.figure import Figure

CPU = torch.device("cpu")
CEILINGS = {"copy_TBps": 3.0, "bf16_TFLOPs": 790.0}
# name: batch, total tokens, unique tokens, as published with the tables
PUBLISHED = {
    "PAT-1": (10, 45_120, 8_256),
    "PAT-3": (1024, 2_129_920, 34_816),
    "PAT-11": (1024, 917_504, 278_912),
    "PAT-15": (1024, 589_824, 46_336),
    "PAT-18": (256, 335_872, 28_672),
    "PAT-20": (256, 1_048_576, 1_048_576),
    "FT-1": (64, 18_944, 2_568),
    "FT-8": (1024, 892_928, 278_816),
    "FT-10": (1024, 147_456, 20_464),
    "FT-15": (1024, 507_904, 25_856),
    "seq 128": (8, 33_792, 5_120),
    "batch 64": (64, 262_144, 133_120),
    "batch120k 64": (64, 7_811_072, 251_072),
    "depth 6": (32, 196_608, 64_512),
    "ratio 0.05": (16, 1_920_000, 1_097_145),
    "ratio 0.5": (16, 1_920_000, 225_885),
    "shape 5T": (25, 76_800, 31_744),
    "shape DT": (1, 3_072, 3_072),
}
REPORT_KEYS = {"gpu", "versions", "commit", "command", "ceilings", "rows"}
ROW_KEYS = {
    *("table", "name", "heads", "dtype", "batch", "unique_tokens", "total_tokens"),
    *("limit_us", "plan_ms", "us", "err"),
}


def small_problem(
    tree: str = "1,2,8_24,0,9",
    heads: str = "4/2",
    slots: str = "scattered",
    layers: int = 2,
    window: int = 0,
    has_sinks: bool = False,
    query_rows: int = 1,
) -> Problem:
    row = tables.Row("small", tree, heads, *tables.parse_tree(tree))
    shape = {"layers": layers, "head_dim": 16, "window": window, "has_sinks": has_sinks}
    shape["query_rows"] = query_rows
    return Problem(row, KVPool(torch.float32, torch.float32, CPU), slots=slots, **shape)


def synthetic_row(row: tables.Row, **us: float) -> dict:
    return {
        "table": row.table,
        "name": row.name,
        "heads": row.heads,
        "head_dim": 128,
        "value_dim": 128,
        "dtype": "bfloat16",
        "batch": row.batch,
        "unique_tokens": row.unique_tokens,
        "total_tokens": row.total_tokens,
        "limit_us": 10.0,
        "plan_ms": 0.2,
        "us": us,
        "err": dict.fromkeys(us, 2e-3),
        "slots": "scattered",
        "tree": row.tree,
        "bandwidth_us": 8.0,
        "bytes": dict(zip(traffic.KINDS, (8000, 500, 500, 2000, 2000), strict=True)),
        "wrong": [],
        "why": {"pat": "scattered slots"},
    }


def test_every_published_row_is_there() -> None:
    assert {name: len(rows()) for name, rows in tables.TABLES.items()} == {
        "codec": 30,
        "fasttree": 15 * 3,
        "pat": 20 * 4,
        "controls": 4 * 2,
        "verify": 5 * 2,
    }
    names = [(row.table, row.name, row.heads) for row in tables.all_rows()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", PUBLISHED)
def test_token_counts_are_the_published_ones(name: str) -> None:
    rows = [row for row in tables.all_rows() if row.name == name]
    assert rows
    for row in rows:
        assert (row.batch, row.total_tokens, row.unique_tokens) == PUBLISHED[name]


def test_presets_select_rows() -> None:
    quick = tables.select(["quick"])
    assert len(quick) == len(tables.QUICK)
    assert {row.table for row in quick} == set(tables.IN_ALL)
    assert len(tables.select(["all"])) == 163
    assert len(tables.select(["shapes", "controls"], heads=["64/8"])) == 10 + 8
    assert len(tables.select(["verify"], only="few-shot")) == 2
    assert len(tables.select(["codec", "quick"], only="batch120k")) == 5
    assert {row.heads for row in tables.select(["pat"], heads=["8/1"])} == {"8/1"}
    assert len(tables.select(["pat"], heads=["8/1"])) == 20
    with pytest.raises(ValueError, match="unknown rows"):
        tables.select(["nonsense"])


@pytest.mark.parametrize("slots", ["scattered", "contiguous"])
@pytest.mark.parametrize("tree", ["1,2,8_24,0,9", "2,4,12_5,6,7", "1,1,1_8,8,8", "6_33", "1,3_7,0"])
def test_a_problem_holds_the_tree(tree: str, slots: str) -> None:
    problem = small_problem(tree, slots=slots)
    row = problem.row
    every = np.concatenate(problem.node_slots)
    assert len(np.unique(every)) == len(every) == row.unique_tokens
    assert 0 not in every
    assert every.max() < problem.num_slots == len(problem.k[0])
    assert problem.kv_indptr[-1] == len(problem.kv_indices) == row.total_tokens
    for path, own in zip(problem.paths, problem.request_slots, strict=True):
        assert np.concatenate([slots for _, slots in path]).tolist() == own.tolist()
    readers = problem.tree.readers
    for node, parent in enumerate(problem.tree.parents):
        assert parent < node
        assert parent < 0 or len(readers[node]) < len(readers[parent]), "an unmerged run"


def test_sinks_are_in_what_every_peer_is_compared_with() -> None:
    problem = small_problem("1,8_24,9", has_sinks=True)
    row = measure.measure_row(problem, ["codec", "flashinfer"], CEILINGS, 1, False)
    assert row["err"]["codec"] < 1e-5
    assert row["why"] == {"flashinfer": "it has no sinks here"}
    assert row["sinks"]


def test_windows_are_cut_for_every_peer_alike() -> None:
    problem = small_problem("1,8_24,9", window=12)
    assert (problem.lengths == 33).all()
    assert (problem.total_tokens, problem.unique_tokens) == (8 * 12, 3 + 8 * 9)
    row = measure.measure_row(problem, ["codec", "eager", "cascade"], CEILINGS, 1, False)
    assert row["why"] == {"cascade": "it has no windows"}
    assert row["window_left"] == 11
    assert max(row["err"].values()) < 1e-5
    assert set(row["err"]) == {"codec", "eager"}


def test_each_query_row_is_compared_with_what_it_sees() -> None:
    problem, single = (small_problem("1,8_24,9", query_rows=rows) for rows in (3, 1))
    row = measure.measure_row(problem, ["codec", "eager", "triton"], CEILINGS, 1, False)
    assert row["why"] == {"triton": "it has one query row per request"}
    assert row["query_rows"] == 3
    assert set(row["err"]) == {"codec", "eager"}
    assert max(row["err"].values()) < 1e-5
    assert problem.flops == 3 * single.flops
    out = problem.empty()
    out[:] = 1.0
    assert problem.errors(out)[0] > 0.1
    # one token more than it sees is found
    assert [len(problem.slots_of_row(r)) for r in range(4)] == [31, 32, 33, 31]
    assert problem.expected.shape == (8 * 3, 4, 16)


def test_layers_share_no_memory_and_keep_l2_cold() -> None:
    problem = small_problem(layers=3)
    starts = sorted(t.data_ptr() for t in problem.k + problem.v)
    size = problem.k[0].nbytes
    assert all(b - a >= size for a, b in zip(starts, starts[1:], strict=False))
    assert layers_to_stay_cold(4096 * 3072) * 4096 * 3072 >= 300e6
    assert layers_to_stay_cold(10**9) == 2
    assert layers_to_stay_cold(10**10) == 1


def test_calls_are_whole_cycles() -> None:
    for layers, limit in ((229, 0.4), (24, 4.2), (2, 341.0), (1, 5000.0), (256, 1.0)):
        calls = timing.calls_per_replay(layers, limit)
        assert calls % layers == 0
        assert layers <= calls <= timing.MAX_CALLS


def test_slow_calls_are_repeated_less_but_the_hosts_own_time_does_not_count() -> None:
    fast = timing.calls_per_replay(3, 47.5)
    assert fast > 30
    assert timing.calls_per_replay(3, 47.5, eager_us=0.9 * timing.HOST_US) == fast
    assert timing.calls_per_replay(3, 47.5, eager_us=3000.0) == 3
    assert timing.calls_per_replay(3, 4000.0, eager_us=3000.0) == 3


class FakeEvent:
    """Half a millisecond later than the one before it; reached if the spin was too short."""

    now_ms = 0.0
    spins: list[int] = []
    short_spin = 0

    def __init__(self, enable_timing: bool) -> None:
        self.ms = 0.0

    def record(self) -> None:
        FakeEvent.now_ms += 0.5
        self.ms = FakeEvent.now_ms

    def query(self) -> bool:
        return self.spins[-1] <= self.short_spin

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.ms - self.ms


def test_queued_calls_cycle_the_layers_and_say_when_the_host_fell_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(FakeEvent, "spins", [])
    monkeypatch.setattr(torch.cuda, "_sleep", FakeEvent.spins.append)
    layers: list[int] = []
    sampler = timing.QueuedSampler(layers.append, 7, 1000)
    assert sampler.calls == timing.QUEUED_CALLS
    assert layers == [i % 7 for i in range(2 * sampler.calls)]
    assert sampler(2) == pytest.approx([500 / sampler.calls] * 2)
    assert not sampler.host_bound
    assert FakeEvent.spins[1] == FakeEvent.spins[0] > 0
    monkeypatch.setattr(FakeEvent, "short_spin", FakeEvent.spins[0])
    sampler(1)
    assert sampler.host_bound
    sampler(1)
    assert FakeEvent.spins[-1] > 1.9 * FakeEvent.spins[0]
    assert not sampler.host_bound


def test_replays_follow_each_candidates_own_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[int]] = {"few": [], "many": []}

    def sampler(name: str, us: float) -> timing.Sampler:
        def sample(replays: int) -> list[float]:
            asked[name].append(replays)
            return [us] * replays

        return sample

    samplers = {"few": sampler("few", 100.0), "many": sampler("many", 100.0)}
    calls = {"few": 2, "many": 2000}
    assert timing.measure(samplers, calls, rounds=1) == {"few": 100.0, "many": 100.0}
    # a round of ROUND_US: 40 replays at the most, 5 at the least
    assert (asked["few"][-1], asked["many"][-1]) == (40, 5)


def test_the_reference_is_attention_and_the_sample_is_fixed() -> None:
    problem = small_problem("1,40_16,5")
    assert len(problem.sample) == 28
    assert problem.sample == small_problem("1,40_16,5").sample
    request = problem.sample[3]
    slots = torch.from_numpy(problem.request_slots[request].astype(np.int64))
    group = problem.num_qo_heads // problem.num_kv_heads
    k = problem.k[0][slots].repeat_interleave(group, 1).double()
    v = problem.v[0][slots].repeat_interleave(group, 1).double()
    scores = torch.einsum("hd,nhd->hn", problem.q[request].double(), k) * problem.sm_scale
    expected = torch.einsum("hn,nhd->hd", scores.softmax(-1), v)
    torch.testing.assert_close(problem.expected[3], expected)


def test_the_reference_does_not_depend_on_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, chunked = small_problem("1,2_700,90"), small_problem("1,2_700,90")
    assert len(chunked.request_slots[0]) > 256
    monkeypatch.setattr("library.attention.problem.REFERENCE_ELEMENTS", 1)
    torch.testing.assert_close(chunked.expected, whole.expected, rtol=1e-12, atol=1e-12)


def test_larger_pages_need_whole_pages() -> None:
    row = tables.Row("small", "pages", "4/2", *tables.parse_tree("1,3_32,7"))
    problem = Problem(
        row, KVPool(torch.float32, torch.float32, CPU), slots="contiguous", align=16, layers=1
    )
    table = problem.page_table(16)
    for request, slots in enumerate(problem.request_slots):
        token = np.arange(len(slots))
        assert (table[request].numpy()[token // 16] * 16 + token % 16).tolist() == slots.tolist()
    with pytest.raises(ValueError, match="pages of 16"):
        small_problem(slots="contiguous").page_table(16)


def test_cascade_levels_cover_every_request_once() -> None:
    problem = small_problem("2,4,12_5,6,7")
    levels = tree_peers.cascade_levels(problem.tree, problem.node_slots)
    for position, request in enumerate(problem.tree.dfs_order):
        read = []
        for level in levels:
            segment = int(np.searchsorted(level.qo_indptr, position, side="right")) - 1
            read.append(level.slots[segment])
        assert np.concatenate(read).tolist() == problem.request_slots[request].tolist()
    unshared = small_problem("6_33")
    with pytest.raises(Unsupported, match="nothing is shared"):
        tree_peers.cascade_levels(unshared.tree, unshared.node_slots)


@pytest.mark.parametrize("kv_dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_a_cache_in_fp8_is_read_by_peers_that_can(kv_dtype: torch.dtype) -> None:
    """With half of the bytes in the limit, and compared with fp64 on what the cache holds."""
    tree = "1,2,8_24,0,9"
    row = tables.Row("small", tree, "4/2", *tables.parse_tree(tree))
    pool = KVPool(torch.float32, kv_dtype, CPU)
    problem = Problem(row, pool, layers=2, head_dim=16)
    assert problem.unique_bytes == small_problem(tree).unique_bytes / 4
    peers = ["codec", "eager", "fasttree", "pat"]
    found = measure.measure_row(problem, peers, CEILINGS, rounds=1, verbose=False)
    assert found["dtype"] == f"float32-{str(kv_dtype)[6:]}"
    assert max(found["err"]["codec"], found["err"]["eager"]) < 1e-5
    assert set(found["why"]) == {"fasttree", "pat"}


def test_peers_that_fail_or_err_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = small_problem()
    exact = measure.ADAPTERS["eager"](problem)[0].run

    def refuses(_: Problem) -> list[Runner]:
        raise Unsupported("not this one")

    def breaks(_: Problem) -> list[Runner]:
        raise RuntimeError("no kernel\n image")

    def permuted(problem: Problem) -> list[Runner]:
        order = torch.randperm(problem.batch)
        return [Runner(lambda layer: exact(layer)[order], position=order.argsort())]

    def half_wrong(problem: Problem) -> list[Runner]:
        wrong = Runner(lambda layer: torch.zeros_like(problem.q), "fast")
        return [wrong, Runner(exact, "right"), Runner(lambda _: problem.q * torch.nan, "nan")]

    stubs = {
        "codec": lambda _: [Runner(exact, notes={"plan_ms": 0.25, "forest_ms": 1.0})],
        "flashinfer": half_wrong,
        "cascade": permuted,
        "fa3": refuses,
        "triton": breaks,
        "fasttree": lambda problem: [Runner(lambda layer: problem.q)],
    }
    monkeypatch.setattr(measure, "ADAPTERS", stubs)
    monkeypatch.setattr(timing, "WARM_UP_US", 1.0)
    monkeypatch.setattr(timing, "ROUND_US", 1.0)
    row = measure.measure_row(problem, list(stubs), CEILINGS, rounds=1, verbose=False)
    assert row.keys() >= ROW_KEYS
    assert row["plan_ms"] == 0.25
    assert row["us"].keys() == row["err"].keys() == {"codec", "flashinfer", "cascade", "fasttree"}
    assert row["variant"] == {"flashinfer": "right"}
    assert row["wrong"] == ["fasttree"]
    assert row["why"] == {"fa3": "not this one", "triton": "RuntimeError: no kernel image"}
    assert row["err"]["cascade"] < 1e-6
    assert summary.best(row, ("fasttree",)) is None
    expected = max(problem.unique_bytes / 3.0e12, problem.flops / 790e12) * 1e6
    assert row["limit_us"] == pytest.approx(expected)
    assert row["calls"] == dict.fromkeys(row["us"], problem.layers)


def test_a_row_has_the_bytes_of_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = small_problem()
    exact = measure.ADAPTERS["eager"](problem)[0].run
    plan = {"parts": 5}
    stubs = {"codec": lambda _: [Runner(exact, notes={"plan": plan})], "other": lambda _: []}
    monkeypatch.setattr(measure, "ADAPTERS", stubs)
    monkeypatch.setattr(timing, "WARM_UP_US", 1.0)
    monkeypatch.setattr(timing, "ROUND_US", 1.0)
    row = measure.measure_row(problem, ["codec"], CEILINGS, rounds=1, verbose=False)
    q = problem.batch * 4 * 16 * 4
    partial = 5 * 4 * (16 + 1) * 4
    assert row["bytes"] == {
        "kv": problem.unique_bytes,
        "q": q,
        "o": q,
        "partial_write": partial,
        "partial_read": partial,
    }
    assert row["all_bytes_us"] == pytest.approx(sum(row["bytes"].values()) / 3.0e6)
    assert row["all_bytes_us"] == pytest.approx(traffic.all_bytes_us(row))
    without = measure.measure_row(problem, ["other"], CEILINGS, rounds=1, verbose=False)
    assert without["bytes"]["partial_read"] == 0


def test_the_report_is_written_after_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "ceilings", lambda device: CEILINGS)
    trees = ["1,2_9,4", "1,3_9,4", "2_9"]
    rows = [tables.Row("codec", tree, "4/2", *tables.parse_tree(tree)) for tree in trees]
    monkeypatch.setattr(tables, "select", lambda *_: rows)
    path = tmp_path / "deep" / "report.json"
    seen = []

    def one(row: tables.Row, *_: object) -> dict:
        seen.append(len(json.loads(path.read_text())["rows"]) if path.exists() else 0)
        if row is rows[1]:
            raise RuntimeError("this row breaks")
        return synthetic_row(row, codec=10.0, flashinfer=np.float32(20.0))

    monkeypatch.setattr(bench_kernels, "_one", one)
    monkeypatch.setenv("BENCH_COMMIT", "abc")
    options = bench_kernels.parse(
        ["--device", "cpu", "--json", str(path), "--peers", "codec,flashinfer"]
    )
    bench_kernels.run(options)
    document = json.loads(path.read_text())
    assert seen == [0, 1, 1]
    assert document.keys() >= REPORT_KEYS
    assert (document["commit"], document["ceilings"]) == ("abc", CEILINGS)
    assert [row["name"] for row in document["rows"]] == [trees[0], trees[2]]
    assert [row["name"] for row in document["skipped"]] == [trees[1]]
    assert "2.00x" in summary.summarise(document["rows"])


def test_a_spent_budget_stops_before_the_next_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "ceilings", lambda device: CEILINGS)
    path = tmp_path / "report.json"
    options = bench_kernels.parse(["--device", "cpu", "--budget", "-1", "--json", str(path)])
    assert bench_kernels.run(options).stopped.startswith("budget spent after 0 of")
    assert json.loads(path.read_text())["rows"] == []


def test_rows_of_earlier_reports_are_left_out(tmp_path: Path) -> None:
    first, second = tables.codec_rows()[:2]
    report = tmp_path / "first.json"
    report.write_text(json.dumps({"rows": [synthetic_row(first, codec=1.0)]}))
    arguments = ["--rows", "codec", "--slots", "scattered,contiguous", "--not-in", str(report)]
    work = [*bench_kernels.work_of(bench_kernels.parse(arguments))]
    assert work[:3] == [(first, "contiguous"), (second, "scattered"), (second, "contiguous")]
    assert len(work) == 2 * 30 - 1
    others = ("--window-left=4095", "--sinks", "--query-rows=4", "--head-dim=128/64")
    for option in others:  # no report has rows of such layers
        work = [*bench_kernels.work_of(bench_kernels.parse([*arguments, option]))]
        assert len(work) == 2 * 30, option
    with pytest.raises(SystemExit):
        bench_kernels.parse(["--slots", "shuffled"])


def test_rows_of_other_layers_are_not_taken_for_a_reports(tmp_path: Path) -> None:
    row = synthetic_row(tables.codec_rows()[0], codec=1.0)
    others = ({}, {"window_left": 4095}, {"sinks": True}, {"query_rows": 4}, {"value_dim": 64})
    reports = []
    for number, other in enumerate(others):
        report = tmp_path / f"{number}.json"
        report.write_text(json.dumps({"rows": [row | other]}))
        reports.append(report)
    assert len(results.load(reports)[1]) == len(others)
    # a report of the time before it named the width of values, or what is usual, replaces the first
    older = tmp_path / "older.json"
    usual = {"window_left": -1, "sinks": False, "query_rows": 1}
    row = {name: value for name, value in row.items() if name != "value_dim"}
    older.write_text(json.dumps({"rows": [row | usual]}))
    assert len(results.load([*reports, older])[1]) == len(others)


@pytest.mark.parametrize(("slots", "align"), [("scattered", 1), ("contiguous", 32)])
def test_pages_align_contiguous_nodes_only(
    slots: str, align: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Problem] = []
    monkeypatch.setattr(bench_kernels, "measure_row", lambda problem, *_: seen.append(problem))
    options = bench_kernels.parse(["--peers", "codec,pat", "--head-dim", "16"])
    row = tables.Row("small", "tree", "4/2", *tables.parse_tree("1,3_40,7"))
    bench_kernels._one(row, slots, KVPool(torch.float32, torch.float32, CPU), options, CEILINGS)
    assert seen[0].align == align
    assert (seen[0].node_slots[1][0] % 32 == 0) == (align == 32)


def test_reports_are_read_together_and_the_latest_row_stands(tmp_path: Path) -> None:
    row = tables.codec_rows()[0]
    old, new = synthetic_row(row, codec=2.0), synthetic_row(row, codec=1.0)
    contiguous = synthetic_row(row, codec=3.0) | {"slots": "contiguous"}
    paths = [tmp_path / "1.json", tmp_path / "2.json"]
    for path, rows in zip(paths, ([old, contiguous], [new]), strict=True):
        path.write_text(json.dumps({"commit": path.stem, "rows": rows}))
    head, rows = results.load(paths)
    assert head["commit"] == "2"
    assert sorted(row["us"]["codec"] for row in rows) == [1.0, 3.0]


def test_layouts_of_slots_are_told_apart() -> None:
    row = tables.codec_rows()[0]
    scattered = synthetic_row(row, codec=10.0, flashinfer=20.0)
    contiguous = synthetic_row(row, codec=10.0, flashinfer=40.0) | {"slots": "contiguous"}
    text = summary.summarise([scattered, contiguous])
    assert "2.00x" in text
    assert "4.00x" in text
    assert "2.83x" not in text
    for show in (summary.means, table_kernels.all_rows):
        both, one = show([scattered, contiguous]), show([scattered])
        assert "| slots |" in both
        assert "| contiguous |" in both
        assert "slots" not in one
        assert all(len({text.count("|") for text in t.splitlines()}) == 1 for t in (both, one))


def test_rows_without_a_time_leave_gaps_in_the_table() -> None:
    row = synthetic_row(tables.codec_rows()[0], flashinfer=20.0) | {"plan_ms": None}
    assert "| 20.0 | - | - |" in table_kernels.all_rows([row])


def test_the_table_of_bytes_shows_both_limits() -> None:
    row = synthetic_row(tables.codec_rows()[0], codec=26.0)
    *_, line = table_kernels.byte_rows([row]).splitlines()
    assert line.endswith("| 10.0 | 13.0 | 26.0 | 38% | 50% |")
    assert len(table_kernels.byte_rows([row | {"bytes": None}]).splitlines()) == 2


def test_what_json_cannot_hold_becomes_plain() -> None:
    value = {1: np.int32(3), "a": np.array([1.5, np.nan]), "b": (True, None), "c": float("inf")}
    assert results.plain(value) == {"1": 3, "a": [1.5, None], "b": [True, None], "c": None}


def test_gains_are_over_the_best_correct_stock_backend() -> None:
    row = synthetic_row(tables.codec_rows()[0], codec=10.0, flashinfer=30.0, fa3=15.0, cascade=5.0)
    assert summary.gain(row) == 1.5
    row["wrong"] = ["fa3"]
    assert summary.gain(row) == 3.0
    assert summary.gain(row, PREFIX_AWARE) == 0.5
    assert "| 3.00x |" in summary.summarise([row])
    assert "32/8 scat: fa3" in summary.summarise([row])
    assert summary.gain(synthetic_row(tables.codec_rows()[0], codec=1.0)) is None


def test_the_prediction_is_compared_with_the_measurement() -> None:
    rows = [synthetic_row(row, codec=10.0 * i) for i, row in enumerate(tables.codec_rows()[:5], 1)]
    for i, row in enumerate(rows, 1):
        row["plan"] = {"makespan_us": 5.0 * i if i < 5 else 10.0}
    text = summary.prediction(rows)[-1]
    assert "2.00 in the median, 5.00 at worst" in text
    assert rows[4]["name"] in text
    assert summary.prediction(rows[:2]) == []


def test_plots_of_a_whole_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = [
        synthetic_row(row, codec=1 + us, flashinfer=1.5 * us, other=2 * us)
        for row, us in zip(tables.all_rows(), rng.uniform(11, 900, 163), strict=True)
    ]
    rows[3]["us"] = {"codec": 12.0}
    rows[4]["wrong"] = ["flashinfer"]
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"gpu": "GPU", "commit": "abc", "rows": rows}))
    written = plot_kernels.draw([report], tmp_path / "plots", dpi=40)
    assert [path.name for path in written] == [
        *(f"kernels-{table}.png" for table in tables.IN_ALL),
        "kernels-gain.png",
    ]
    assert all(path.stat().st_size > 5000 for path in written)
    (single,) = plot_kernels.draw([report], tmp_path / "shapes.png", dpi=40, by_shape=True)
    assert single.stat().st_size > 5000
    config = "64x64/5/4/1/wer"
    for row in rows:
        row["us"][f"codec {config}"] = 1.0
    report.write_text(json.dumps({"gpu": "GPU", "commit": "abc", "rows": rows}))
    seen: list[list[dict]] = []
    monkeypatch.setattr(plot_kernels, "gains_figure", lambda won, _: seen.append(won) or Figure())
    out = tmp_path / "launched.png"
    plot_kernels.draw([report], out, dpi=40, by_shape=True, launched=[config])
    assert {row["us"]["codec"] for row in seen[0]} == {1.0}
    row = {"heads": "64/4", "head_dim": 192, "value_dim": 128, "dtype": "bfloat16"}
    row |= {"window_left": 4095, "sinks": True}
    assert plot_kernels.shape_of(row) == "64/4 heads of 192/128, bfloat16, window of 4096, sinks"


def test_launch_configurations_are_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_kernels, "ADAPTERS", measure.ADAPTERS)
    text = "16x32+64x32+b16x32/2/4/1"
    options = bench_kernels.parse(["--peers", "eager", "--configs", text])
    monkeypatch.setattr(timing, "WARM_UP_US", 1.0)
    monkeypatch.setattr(timing, "ROUND_US", 1.0)
    row = measure.measure_row(small_problem("1,2_9,4"), options.peers, CEILINGS, 1, False)
    name = f"codec {text}"
    assert row["us"].keys() == {"eager", name}
    assert (row["wrong"], row["err"][name] < 1e-2) == ([], True)
    assert row[f"pac_us {text}"] > 0
    assert row[f"plan {text}"]["tasks"] >= 1
    del measure.ADAPTERS[name]


def test_a_configuration_names_the_steps_ahead_of_fp8() -> None:
    ((_, config),) = bench_kernels.parse(["--configs", "64x64+b64x64/3+4/4/1/we"]).configs
    assert (config.stages, config.ahead) == (3, 4)


@pytest.mark.parametrize("text", ["64x64/5/4", "64/5/4/1", "64x64+64x64/5/4/1", "64x64/5/4/1/x/"])
def test_a_wrong_configuration_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_kernels.parse(["--configs", text])
    assert "a configuration is as 64x64" in capsys.readouterr().err
