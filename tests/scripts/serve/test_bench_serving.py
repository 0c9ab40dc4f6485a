"""The serving benchmark without a server: shapes, figures, bound, document, table, picture."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import bench_serving
import plot_serving
import psutil
import pytest
import table_serving
from library.results import split_words, without_paths
from library.servers import workload
from library.servers.backends import as_flags, backend_arguments, uses_codec
from library.servers.clients import Completion, Request
from library.servers.counters import codec_counters, increase
from library.servers.models import SHAPES, write_model
from library.servers.server import cause, reason
from serving import bound, busy, document, options, session
from serving.arrivals import median_of
from serving.document import CannotContinue, Document
from serving.jobs import DEFAULT, AnyWorkload, Job, Variant, jobs_of, parse_variant
from serving.measure import decoded_kv_tokens, disagreement, interval_of
from serving.places import Place
from serving.scheduler_log import accept_length, read_arrivals, read_log
from serving.steady import NotSteady, latencies, steady_state
from serving.stock_bench import BenchmarkFailed, arguments, figures_of, goodput
from serving.workers import Hear

# name: requests, distinct prompt tokens, prompt tokens of all requests
SHAPES_OF_THE_ISSUE = {
    "document-qa-32": (32, 108_192, 3_208_192),
    "document-qa-64": (64, 116_384, 6_416_384),
    "few-shot": (64, 24_576, 540_672),
    "tree-of-thought": (256, 32_768, 770_048),
    "rollouts": (256, 32_768, 524_288),
    "no-sharing": (64, 131_072, 131_072),
    "single": (1, 8_448, 8_448),
}
TREE = workload.Workload("tree", (1, 2, 6), (5, 3, 2), steps=4)
LLAMA_BYTES = 131_072  # of a token in 32 layers, 8 heads, 128 dimensions, bf16


# shapes ------------------------------------------------------------------------------------------


def test_workloads_have_the_tokens_of_the_issue() -> None:
    found = {w.name: (w.batch, w.unique_tokens, w.total_tokens) for w in workload.STEADY.values()}
    assert found == SHAPES_OF_THE_ISSUE
    assert workload.STEADY["rollouts"].steps == 512
    assert workload.STEADY["few-shot"].shared_tokens == 8192


def test_prompts_share_what_the_tree_says_and_no_more() -> None:
    levels = workload.prompts(TREE, vocabulary=500, seed=0)
    assert [len(level) for level in levels] == [1, 2, 6]
    distinct = {ids[:n] for ids in levels[-1] for n in range(1, len(ids) + 1)}
    assert len(distinct) == TREE.unique_tokens
    assert all(len(ids) == TREE.prompt_tokens for ids in levels[-1])
    assert levels == workload.prompts(TREE, vocabulary=500, seed=0)
    assert levels != workload.prompts(TREE, vocabulary=500, seed=1)


def test_rollouts_have_equal_prompts() -> None:
    rollouts = workload.Workload("rollouts", (2, 6), (4, 0))
    (groups, leaves) = workload.prompts(rollouts, vocabulary=100, seed=0)
    assert leaves == [groups[0]] * 3 + [groups[1]] * 3
    assert (rollouts.shared_tokens, rollouts.unique_tokens) == (4, 8)


def test_too_many_siblings_for_a_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="6 siblings need more than 4 ids"):
        workload.prompts(workload.tree_of("6_8"), vocabulary=20, seed=0)


def test_shared_prompts_are_brought_in_level_by_level() -> None:
    levels = workload.prompts(TREE, vocabulary=500, seed=0)
    batches = workload.warm_ups(TREE, levels)
    assert [[r.input_ids for r in batch] for batch in batches] == levels[:2]
    nothing_shared = workload.tree_of("3_4")
    assert workload.warm_ups(nothing_shared, workload.prompts(nothing_shared, 500, 0)) == []


def test_requests_are_the_leaves_in_another_order() -> None:
    levels = workload.prompts(TREE, vocabulary=500, seed=0)
    prompts = [request.input_ids for request in workload.requests_of(TREE, levels)]
    assert sorted(prompts) == sorted(levels[-1])
    assert prompts != levels[-1]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("2,3_4,4", "3 nodes below 2 are not a multiple"),
        ("0_4", "needs nodes"),
        ("1,2_0,4", "needs nodes and every prompt tokens"),
        ("1_0", "every prompt tokens"),
        ("1,2_4", "2 levels, 1 lengths"),
        ("1,2_4,-1", "-1 tokens"),
        ("1,2", "is no workload"),
        ("1,x_2,3", "is no workload"),
    ],
)
def test_impossible_trees_are_refused(tree: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        workload.tree_of(tree)


@pytest.mark.parametrize("text", ["", "fewshot", "1,8_64", "8", "few-shot,single"])
def test_what_is_no_workload_is_refused(text: str) -> None:
    assert options.parse_workload("few-shot") == "few-shot"
    assert options.parse_workload("1,8_64,16") == "1,8_64,16"
    with pytest.raises(argparse.ArgumentTypeError):
        options.parse_workload(text)


def test_steps_for_all_and_for_one() -> None:
    assert options.parse_steps("64") == {"": 64}
    steps = options.parse_steps("32,rollouts=200")
    chosen = [workload.with_steps(workload.STEADY[n], steps).steps for n in ("rollouts", "single")]
    assert chosen == [200, 32]
    with pytest.raises(argparse.ArgumentTypeError):
        options.parse_steps("rollouts=none")


def selected(*words: str) -> list[AnyWorkload]:
    parser = options.make_parser("")
    return options.select(parser.parse_args(["--model=m", "--json=j", *words]))


def test_short_rows_come_first_and_once_per_batch() -> None:
    found = selected("--workloads", "few-shot", "no-sharing", "single", "churn")
    names = [w.name for w in found]
    assert names == ["short-1", "short-64", "few-shot", "no-sharing", "single", "churn"]


def test_arrivals_have_a_row_per_rate() -> None:
    found = selected("--workloads=arrivals", "--request-rates=2.5,40,40", "--arrivals=3x4,5,6,7")
    assert [(w.name, w.rate, w.requests, w.output) for w in found] == [
        ("arrivals-2.5", 2.5, 12, 7),
        ("arrivals-40", 40.0, 12, 7),
    ]
    # besides seven trees, what their bounds need, and churn
    assert [w.name for w in selected()][-4:] == ["churn", *(f"arrivals-{n}" for n in (16, 24, 40))]


# servers -----------------------------------------------------------------------------------------


def test_a_variant_is_a_name_and_flags() -> None:
    assert parse_variant("mixed=--enable-mixed-chunk") == Variant(
        "mixed", ("--enable-mixed-chunk",)
    )
    assert parse_variant("a-b=--x 1 --y='2 3'").flags == ("--x", "1", "--y=2 3")
    assert parse_variant("default=") == Variant(DEFAULT)
    for text in ("mixed", "--enable-mixed-chunk=1", "=--x", "a b=--x", "a='"):
        with pytest.raises(argparse.ArgumentTypeError):
            parse_variant(text)


@pytest.mark.parametrize("every", [False, True])
def test_trees_are_served_with_the_first_variant(every: bool) -> None:
    variants = [Variant(DEFAULT), Variant("mixed", ("--enable-mixed-chunk",))]
    workloads = [TREE, workload.CHURN]
    jobs = jobs_of(["codec", "fa3"], variants, workloads, every_variant=every)
    assert [job.name for job in jobs] == ["codec", "fa3", "codec, mixed", "fa3, mixed"]
    assert [TREE in job.workloads for job in jobs] == [True, True, every, every]
    assert all(workload.CHURN in job.workloads for job in jobs)
    assert len({job.folder for job in jobs}) == len(jobs)


# figures -----------------------------------------------------------------------------------------


def served(arrivals: list[tuple[float, int]], *, prompt: int = 1) -> Completion:
    total = sum(new for _, new in arrivals)
    return Completion(
        Request(f"request {prompt}", (prompt,), total),
        output_ids=list(range(total)),
        first_token_s=arrivals[0][0],
        last_token_s=arrivals[-1][0],
        arrivals=arrivals,
    )


def test_only_the_time_in_which_all_decode_counts() -> None:
    # the first is alone at twice the speed until 1.0, the second alone again from 1.9 on
    first = served([(0.05 * i, 1) for i in range(20)] + [(1 + 0.1 * i, 1) for i in range(10)])
    second = served([(1.0 + 0.1 * i, 1) for i in range(10)] + [(1.95, 1), (2.0, 1)], prompt=2)
    steady = steady_state([first, second])
    assert steady.tpot_ms == pytest.approx(100)
    assert steady.itl_ms == {"p50": pytest.approx(100), "p99": pytest.approx(100)}
    assert steady.steps == 9
    # in the mean, (21 + 1) / 2 tokens at 1.0 and (30 + 10) / 2 at 1.9
    assert (steady.tokens_before, steady.tokens_after) == (11, 20)


def test_a_chunk_of_tokens_counts_as_equal_gaps() -> None:
    alone = served([(1.0, 1), (1.4, 4), (2.2, 4)])
    steady = steady_state([alone])
    assert steady.tpot_ms == pytest.approx(150)
    assert steady.itl_ms["p50"] == pytest.approx(150)
    assert steady.itl_ms["p99"] == pytest.approx(200)


def test_requests_that_never_decode_together_are_not_measured() -> None:
    early = served([(0.1 * i, 1) for i in range(10)])
    late = served([(5 + 0.1 * i, 1) for i in range(10)], prompt=2)
    with pytest.raises(NotSteady, match="all 2 requests decoded together for only 0 steps"):
        steady_state([early, late])
    with pytest.raises(NotSteady, match="3 steps"):
        steady_state([served([(0.1 * i, 1) for i in range(4)])])


def test_latencies_and_throughput() -> None:
    figures = latencies([served([(1.0, 1), (2.0, 1)]), served([(3.0, 1), (4.0, 5)], prompt=2)])
    assert figures["ttft_ms"]["p50"] == pytest.approx(2000)
    assert (figures["output_tokens"], figures["tokens_per_s"]) == (8, 2.0)


LOG = """\
[12:00:00] Prefill batch, #new-seq: 64, #running-req: 0, input throughput (token/s): 9.00
[12:00:01] Decode batch, #running-req: 64, #token: 9, cuda graph: True, gen throughput \
(token/s): 10.00, #queue-req: 0
[12:00:02] Decode batch, #running-req: 64, #full token: 9, cuda graph: True, gen throughput \
(token/s): 6400.00, #queue-req: 0, codec: share 0.90
[12:00:03] Decode batch, #running-req: 64, #token: 9, cuda graph: True, gen throughput \
(token/s): 3200.00, #queue-req: 0
[12:00:04] Decode batch, #running-req: 64, #token: 9, cuda graph: True, gen throughput \
(token/s): 6400.00, #queue-req: 0
[12:00:05] Decode batch, #running-req: 3, #token: 9, cuda graph: True, gen throughput \
(token/s): 1.00, #queue-req: 0
"""


def test_the_schedulers_own_time_per_token() -> None:
    logged = read_log(LOG, batch=64)
    # without the first line, which covers the prefill too
    assert logged.tpot_ms == pytest.approx((10 + 20 + 10) / 3)
    assert (logged.lines, logged.cuda_graph) == (3, True)
    assert read_log(LOG.replace("graph: True", "graph: False"), 64).cuda_graph is False
    assert read_log(LOG, batch=3) is None


def test_what_a_verify_step_yields_is_logged() -> None:
    log = LOG
    for tokens in (9, 3, 2, 4, 1):
        log = log.replace("9, cuda", f"9, accept len: {tokens}.00, accept rate: 0.67,  cuda", 1)
    assert accept_length(log) == pytest.approx((9 + 3 + 2 + 4 + 1) / 5)
    assert read_log(log, batch=64) == read_log(LOG, batch=64)
    assert accept_length(LOG) is None


def logged(running: int, tokens: float, graph: bool = True) -> str:
    return (
        f"[12:00:00] Decode batch, #running-req: {running}, #token: 9, cuda graph: {graph}, "
        f"gen throughput (token/s): {tokens:.2f}, #queue-req: 0\n"
    )


def test_the_schedulers_time_per_token_of_requests_that_come_and_go() -> None:
    # the first two are of the benchmark's first request and of the pause after it
    before = logged(1, 0.1) + logged(3, 0.1)
    found = read_arrivals(before + logged(100, 5000) + logged(300, 6000, graph=False))
    # 100 requests waited 20 ms for a token, 300 waited 50
    assert found.tpot_ms == pytest.approx((100 * 20 + 300 * 50) / 400)
    assert (found.largest, found.graphs) == (300, 0.5)
    assert read_arrivals(before) is None


def test_a_client_that_falls_behind_is_noticed() -> None:
    assert disagreement(10.2, 10.0) == disagreement(99.0, None) == []
    (warning,) = disagreement(12.0, 10.0)
    assert "12.00" in warning


def test_chunks_are_longer_at_large_batches() -> None:
    assert [interval_of(batch, 0) for batch in (1, 16, 64, 256)] == [1, 1, 4, 16]
    assert interval_of(256, 2) == 2


def test_decoded_tokens_are_counted_step_by_step() -> None:
    steps = [TREE.total_tokens + TREE.batch * step for step in range(1, TREE.steps)]
    assert decoded_kv_tokens(TREE) == sum(steps)


def test_counters_since_the_row_began() -> None:
    before = {"steps": 5, "plans": 2, "plan_seconds": 0.5, "fallbacks": {"a": 1, "b": 2}}
    before |= {"kv_tokens_read": 10, "kv_tokens_stock": 20}
    after = {"steps": 9, "plans": 3, "plan_seconds": 0.6, "fallbacks": {"a": 1, "b": 5, "c": 1}}
    after |= {"kv_tokens_read": 30, "kv_tokens_stock": 80}
    row = increase(before, codec_counters({"internal_states": [{}, {"codec": after}]}))
    assert (row["decode_steps"], row["plans"], row["kv_tokens_read"]) == (4, 1, 20)
    assert row["fallbacks"] == {"b": 3, "c": 1}
    assert increase(None, codec_counters({"internal_states": [{"x": 1}]})) == {}


def test_whatever_times_a_version_counts_are_taken() -> None:
    before = {"steps": 5, "plans": 2, "kv_tokens_read": 1, "kv_tokens_stock": 1, "fallbacks": {}}
    before |= {"read_seconds": 1.0, "share_ratio": 0.5}
    after = before | {"plans": 4, "read_seconds": 1.5, "share_ratio": 0.7}
    both = [codec_counters({"internal_states": [{"codec": c}] * 2}) for c in (before, after)]
    row = increase(*both)
    assert (row["read_seconds"], row["plans"]) == (1.0, 4)
    assert "plan_seconds" not in row
    assert "share_ratio" not in row


def test_data_parallel_ranks_count_together() -> None:
    """A fallback of any rank is seen."""
    one = {"steps": 5, "plans": 2, "plan_seconds": 0.5, "fallbacks": {"why": 1}}
    one |= {"kv_tokens_read": 10, "kv_tokens_stock": 30}
    other = dict.fromkeys(one, 1) | {"fallbacks": {"why": 2, "other": 3}}
    summed = codec_counters({"internal_states": [{"codec": one}, {"codec": other}]})
    assert (summed["steps"], summed["kv_tokens_stock"]) == (6, 31)
    assert summed["fallbacks"] == {"why": 3, "other": 3}


# bound -------------------------------------------------------------------------------------------


def row(name: str, backend: str, tpot_ms: float, kv_bytes: float = 0.0, **more: object) -> dict:
    return {
        "workload": name,
        "backend": backend,
        "variant": DEFAULT,
        "tree": "1,64_8192,256",
        "batch": 64,
        "shared_tokens": 8192,
        "private_tokens": 256,
        "steps": 128,
        "tpot_ms": tpot_ms,
        "itl_ms": {"p50": tpot_ms, "p99": tpot_ms},
        "ttft_ms": {"p50": 1.0, "p99": 2.0},
        "tokens_per_s": 64e3 / tpot_ms,
        "kv_bytes_per_step": {"unique": kv_bytes, "stock": 2 * kv_bytes},
        "kv_tokens_read": 100,
        "kv_tokens_stock": 100,
        "fallbacks": {},
        "warnings": [],
        "outputs": ["a", "b"],
    } | more


def test_the_bound_is_the_short_row_and_the_bytes_it_has_not_read() -> None:
    rows = [
        row("short-64", "codec", 7.5, kv_bytes=0.6e9),
        row("short-64", "fa3", 7.0, kv_bytes=0.6e9),
        row("short-32", "fa3", 1.0),
        row("few-shot", "codec", 9.0, kv_bytes=3.6e9),
    ]
    found = bound.bound_of(rows[-1], rows, bandwidth_TBps=3.0)
    # 3 GB at 3 TB/s on top of the faster short row
    assert found["base_ms"] + found["kv_ms"] == pytest.approx(8.0)
    assert found == {
        "base_ms": 7.0,
        "base_backend": "fa3",
        "base_kv_bytes": 0.6e9,
        "kv_bytes": 3.6e9,
        "bandwidth_TBps": 3.0,
        "kv_ms": pytest.approx(1.0),
    }
    # a verify step reads them once for all tokens that it yields
    drafted = bound.bound_of(rows[-1] | {"accept_length": 2.5}, rows, 3.0)
    assert drafted["kv_ms"] == pytest.approx(0.4)


def test_no_bound_without_its_terms() -> None:
    rows = [row("short-64", "fa3", 7.0), row("few-shot", "codec", 9.0)]
    assert bound.bound_of(rows[1], rows, None) is None
    assert bound.bound_of(rows[1], rows[1:], 3.0) is None
    assert bound.bound_of(rows[1] | {"variant": "mixed"}, rows, 3.0) is None
    del rows[1]["kv_bytes_per_step"]
    assert bound.bound_of(rows[1], rows, 3.0) is None


def test_servers_on_unequal_gpus_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["H100", "H100"]
    monkeypatch.setattr(bound, "has_gpu", lambda: True)
    monkeypatch.setattr(bound, "_in_a_process", lambda *_: (names, 3.0))
    assert bound.probe_gpus([0, 1]) == {"gpu": "H100", "copy_TBps": 3.0}
    names[1] = "H200"
    with pytest.raises(ValueError, match="the GPUs are H100, H200: compare servers on equal ones"):
        bound.probe_gpus([0, 1])


@pytest.mark.cuda
def test_the_gpus_are_asked() -> None:
    found = bound.probe_gpus([])
    assert found == bound.probe_gpus([0]) | {
        "copy_TBps": pytest.approx(found["copy_TBps"], rel=0.2)
    }
    with pytest.raises(ValueError, match="there is no GPU 99"):
        bound.probe_gpus([99])


def test_bytes_of_a_token() -> None:
    llama = SHAPES["llama3-8b"]
    assert bound.kv_bytes_per_token(llama, {"dtype": "auto", "tp_size": 1}) == LLAMA_BYTES
    assert bound.kv_bytes_per_token(llama, {"dtype": "bfloat16", "tp_size": 2}) == LLAMA_BYTES // 2
    assert bound.kv_bytes_per_token(llama, {"dtype": "float32"}) == 2 * LLAMA_BYTES
    without_head_dim = {k: v for k, v in llama.items() if k != "head_dim"}
    assert bound.kv_bytes_per_token({"text_config": without_head_dim}, {}) == LLAMA_BYTES
    assert bound.kv_bytes_per_token(llama, {"kv_cache_dtype": "fp8_e4m3"}) == LLAMA_BYTES // 2
    half = llama | {"layer_types": ["full_attention", "sliding_attention"] * 16}
    assert bound.kv_bytes_per_token(half, {}) == LLAMA_BYTES // 2
    with pytest.raises(ValueError, match="fp4_e2m1"):
        bound.kv_bytes_per_token(llama, {"kv_cache_dtype": "fp4_e2m1"})


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_a_kind_for_every_layer(shape: str) -> None:
    config = SHAPES[shape]
    kinds = config.get("layer_types", ["full_attention"] * config["num_hidden_layers"])
    assert len(kinds) == config["num_hidden_layers"]
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0


# document ----------------------------------------------------------------------------------------


def make_document(**changes: object) -> Document:
    head = {"gpu": "H100", "versions": {"sglang": "1"}, "commit": "abc", "model": "m"}
    head |= {
        "server_flags": ["--x=1"],
        "variants": {DEFAULT: []},
        "seed": 0,
        "bandwidth_TBps": 3.0,
        "command": "first",
    }
    return Document(**(head | changes))


def test_a_row_takes_the_place_of_an_earlier_one() -> None:
    found = make_document()
    for backend, ms in (("fa3", 9.0), ("codec", 8.0), ("fa3", 7.0)):
        found.add(row("few-shot", backend, ms))
    assert [(r["backend"], r["tpot_ms"]) for r in found.rows] == [("fa3", 7.0), ("codec", 8.0)]
    found.add(row("few-shot", "fa3", 6.0, variant="mixed"))
    assert [r["tpot_ms"] for r in found.rows] == [7.0, 8.0, 6.0]


def test_rows_are_measured_once_per_setting() -> None:
    found = make_document()
    found.add(row("few-shot", "fa3", 9.0))
    wanted = {"workload": "few-shot", "backend": "fa3", "variant": DEFAULT, "steps": 128}
    assert found.has(wanted)
    assert not found.has(wanted | {"variant": "mixed"})
    assert not found.has(wanted | {"steps": 64})
    assert not found.has(wanted | {"backend": "codec"})
    failed = wanted | {"workload": "single"}
    found.add(failed | {"why": "it ended"})
    assert not found.has(failed)


def test_a_file_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "serving.json"
    first = make_document()
    first.add(row("short-64", "fa3", 7.0, kv_bytes=0.6e9))
    first.write(path)
    second = make_document(command="second", bandwidth_TBps=2.9)
    second.continue_from(path)
    second.add(row("few-shot", "codec", 9.0, kv_bytes=3.6e9))
    second.write(path)
    written = json.loads(path.read_text())
    assert written["commands"] == ["first", "second"]
    # one bandwidth per file, or bounds could not be compared
    assert written["bandwidth_TBps"] == 3.0
    assert [r["bound_ms"] for r in written["rows"]] == [7.0, 8.0]
    assert not list(path.parent.glob("*.part"))


@pytest.mark.parametrize(
    "change", [{"commit": "abd"}, {"gpu": "cpu"}, {"server_flags": []}, {"versions": {}}]
)
def test_a_file_of_another_measurement_is_refused(tmp_path: Path, change: dict) -> None:
    make_document().write(tmp_path / "j")
    (name,) = change
    with pytest.raises(CannotContinue, match=f"another measurement; name another file:\n  {name}"):
        make_document(**change).continue_from(tmp_path / "j")


def test_a_variant_means_the_same_in_all_rows(tmp_path: Path) -> None:
    make_document(variants={DEFAULT: [], "mixed": ["--x"]}).write(tmp_path / "j")
    later = make_document(variants={"graphs": ["--y"]})
    later.continue_from(tmp_path / "j")
    assert later.variants == {DEFAULT: [], "mixed": ["--x"], "graphs": ["--y"]}
    for variants in ({"mixed": []}, {DEFAULT: ["--x"]}):
        with pytest.raises(CannotContinue, match=f"variant {next(iter(variants))}"):
            make_document(variants=variants).continue_from(tmp_path / "j")


@pytest.mark.parametrize("content", ["{", "[]", '{"rows": []}'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "j").write_text(content)
    with pytest.raises(CannotContinue, match="no result of this program"):
        make_document().continue_from(tmp_path / "j")


def test_tokens_are_compared_with_the_first_stock_backend() -> None:
    rows = [
        row("few-shot", "codec", 8.0, outputs=["a", "x"]),
        row("few-shot", "fa3", 9.0, outputs=["a", "b"]),
        row("few-shot", "triton", 9.0, outputs=["a", "b"]),
        row("few-shot", "flashinfer", 9.0, steps=64, outputs=["a"]),
        row("few-shot", "codec", 9.0, variant="mixed"),
    ]
    same = [document.same_outputs(r, rows)["same_outputs"] for r in rows]
    assert same[0] == {"reference": "fa3", "identical": 1, "compared": 2}
    assert same[1] is None
    assert same[2] == {"reference": "fa3", "identical": 2, "compared": 2}
    # it served other requests, or with other flags
    assert same[3] is same[4] is None


def test_the_order_of_rows_is_not_that_in_which_servers_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the backend that tokens are compared with would depend on it."""

    def reversed_jobs(waiting: Iterable[Job], _places: object, _work: object, hear: Hear) -> list:
        for job in reversed(list(waiting)):
            hear(job, Place((), frozenset()), row("few-shot", job.backend, 9.0))
        return []

    monkeypatch.setattr(session, "run_jobs", reversed_jobs)
    names = ["codec", "fa3", "flashinfer"]
    jobs = jobs_of(names, [Variant(DEFAULT)], [TREE], every_variant=False)
    args = argparse.Namespace(json=tmp_path / "j", stream_interval=0)
    session.Session(make_document(), None, args, jobs, 0.0).run([Place((), frozenset())])
    rows = json.loads((tmp_path / "j").read_text())["rows"]
    assert [row["backend"] for row in rows] == names
    assert rows[0]["same_outputs"]["reference"] == "fa3"


def test_digests_tell_tokens_apart() -> None:
    assert document.digest([1, 23]) != document.digest([12, 3])
    assert document.digest("text") == document.digest("text")


def test_results_name_no_absolute_path() -> None:
    words = ["bench.py", "/data/model", "--json=/tmp/x.json", "--flag", "out/a", "--rate=1/2"]
    names = ["bench.py", "model", "--json=x.json", "--flag", "out/a", "--rate=1/2"]
    assert without_paths(words) == names
    assert without_paths(["--lora=--x=/data/b", "~/c"]) == ["--lora=--x=b", "c"]


def test_words_after_two_dashes_are_sglangs() -> None:
    assert split_words(["--a", "--", "--b", "--"]) == (["--a"], ["--b", "--"])
    assert split_words(["--a"]) == (["--a"], [])


def test_a_reason_is_one_line_without_folders() -> None:
    message = "http://x:1/generate: cannot open /srv/models/a.json, see /var/log/x\nmore"
    assert reason(message) == "http://x:1/generate: cannot open a.json, see x"
    assert reason("  ") == "no reason given"


def test_the_cause_in_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("[12:00] ok\nTraceback\n  x = ValueError: no\ntorch.OutOfMemoryError: 3 GB\nbye")
    assert cause(log) == "torch.OutOfMemoryError: 3 GB"
    log.write_text("usage: sglang serve ...\nsglang serve: error: no --such\n")
    assert cause(log) == "sglang serve: error: no --such"
    log.write_text("nothing")
    assert "does not say why" in cause(log)


# sglang.bench_serving ----------------------------------------------------------------------------


STOCK_RESULT = {
    "errors": ["", ""],
    "concurrency": 1.5,
    "total_input_tokens": 30,
    "total_output_tokens": 12,
    "mean_tpot_ms": 9.5,
    "ttfts": [0.05, 0.09],
    "itls": [[0.01, 0.03], [0.04, 0.08, 0.06]],
    "output_lens": [3, 4],
    "duration": 2.0,
    "output_throughput": 6.0,
    "generated_texts": ["a", "b"],
}


def test_sglangs_figures_under_our_names() -> None:
    found = figures_of(STOCK_RESULT, 50.0)
    assert (found["tpot_ms"], found["itl_ms"]["p50"]) == (9.5, pytest.approx(40))
    assert found["itl_ms"]["p99"] == pytest.approx(79.2)
    assert found["ttft_ms"] == {"p50": pytest.approx(70), "p99": pytest.approx(89.6)}
    assert found["outputs"] == [document.digest("a"), document.digest("b")]


# means of 20 and 60 ms
@pytest.mark.parametrize(("limit", "good"), [(19.9, 0), (20.1, 1), (59.9, 1), (60.1, 2)])
def test_good_requests_wait_no_longer_than_the_limit_in_the_mean(limit: float, good: int) -> None:
    assert goodput(STOCK_RESULT, limit) == {"requests_per_s": good / 2.0, "share": good / 2}


def test_one_token_is_always_in_time() -> None:
    one = STOCK_RESULT | {"itls": [[], [0.2]], "output_lens": [1, 2]}
    assert goodput(one, 50.0)["share"] == 0.5


def test_a_row_has_the_medians_of_its_runs() -> None:
    runs = [{"a": a, "b": {"c": c}, "d": d} for a, c, d in ((3, 1.0, 1), (1, 9.0, None), (2, 4, 1))]
    assert median_of(runs) == {"a": 2, "b": {"c": 4}, "d": None}
    assert median_of(runs[:1]) == runs[0]
    assert median_of([{"a": {"x": 1}}, {"a": {}}]) == {"a": {"x": None}}


SERVER = '''
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(60)
'''
STREAMS = '''
import setproctitle
setproctitle.setproctitle("sglang::detokenizer")
while True:
    pass
'''


def test_processes_are_told_apart_by_what_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "INTERVAL_S", 0.05)
    server = subprocess.Popen([sys.executable, "-c", SERVER, STREAMS])
    client = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with busy.Busy(server.pid) as watched:
            deadline = time.monotonic() + 30
            while "client" not in watched.shares and time.monotonic() < deadline:
                time.sleep(0.1)
    finally:
        for process in (*psutil.Process(server.pid).children(), server, client):
            process.kill()
    assert watched.shares.keys() == {"client", "detokenizer", "http server"}
    assert watched.shares["detokenizer"] > watched.shares["client"]


def test_failed_requests_are_no_result() -> None:
    with pytest.raises(BenchmarkFailed, match="1 requests failed, the first with too long"):
        figures_of(STOCK_RESULT | {"errors": ["", "too long"]}, 50.0)


def test_arrivals_are_told_to_sglang() -> None:
    words = arguments(workload.CHURN, url="u", model="m", seed=7)
    pairs = dict(zip(words, words[1:], strict=False))
    assert pairs["--dataset-name"] == "generated-shared-prefix"
    assert (pairs["--gsp-num-groups"], pairs["--gsp-prompts-per-group"]) == ("16", "16")
    assert (pairs["--num-prompts"], pairs["--request-rate"]) == ("256", "16")
    assert (pairs["--tokenizer"], pairs["--seed"]) == ("m", "7")


def test_a_dummy_model_encodes_what_it_decodes(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = write_model("tiny", tmp_path / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = [3, 1729, 17, 172, 2047, 29]
    # as SGLang's benchmark joins the parts of a prompt
    assert tokenizer.encode(f"{tokenizer.decode(ids)}\n\n{tokenizer.decode(ids)}") == ids + ids
    assert len(tokenizer) == json.loads((model / "config.json").read_text())["vocab_size"]


# table, picture, command line --------------------------------------------------------------------


def example() -> dict:
    found = make_document()
    found.add(row("short-64", "flashinfer", 7.0, kv_bytes=0.6e9))
    found.add(row("few-shot", "flashinfer", 12.0, kv_bytes=3.6e9))
    found.add(row("few-shot", "fa3", 15.0, kv_bytes=3.6e9, warnings=["the client saw less"]))
    counted = {"plans": 2, "decode_steps": 127, "kv_tokens_read": 25, "fallbacks": {"why": 3}}
    counted |= {"cuda_graph": True, "plan_seconds": 0.003, "read_seconds": 0.0005}
    found.add(row("few-shot", "codec", 8.0, kv_bytes=3.6e9, **counted))
    failed = {"workload": "single", "backend": "fa3", "variant": DEFAULT, "why": "it ended"}
    found.add(failed)
    for backend, p99 in (("codec", 44.0), ("fa3", 40.0), ("flashinfer", 60.0)):
        found.add(arrived(backend, itl_ms={"p50": 9.0, "p99": p99}))
    return found.as_json()


def arrived(backend: str, **more: object) -> dict:
    figures = figures_of(STOCK_RESULT, 50.0)
    figures |= {"workload": "arrivals-24", "backend": backend, "variant": "mixed"}
    figures |= {"batch": None, "requests": 2, "shared_tokens": 7, "private_tokens": 8}
    figures |= {
        "busy": {"client": 0.4, "http server": 0.97, "other": None},
        "largest_batch": 300,
        "cuda_graph": 0.25,
        "request_rate": 24.0,
        "runs": [{}, {}, {}],
        "fallbacks": {},
    }
    return figures | {"kv_tokens_read": None, "kv_tokens_stock": None} | more


def test_the_table_has_a_line_per_workload() -> None:
    lines = table_serving.table(example()["rows"]).splitlines()
    assert lines[0].startswith("| workload | requests | shared + private | codec | flashinfer |")
    few_shot = (
        "| few-shot | 64 | 8,192 + 256 | 8.0 | 12.0 | 15.0 | 1.50x | 8.0 | 25% | 2 of 2"
        " (flashinfer) |"
    )
    assert lines[2] == few_shot
    assert lines[3].startswith("| single | - | - | - | - | failed |")
    assert lines[4].startswith("| arrivals-24, mixed | 2 | 7 + 8 | 9.5 | 9.5 | 9.5 | 1.00x |")
    assert "Rows of arrivals are medians of 3 runs." in lines
    assert "few-shot on fa3: the client saw less." in lines
    assert "single on fa3: it ended." in lines
    assert not any("short-64" in line for line in lines)


def test_a_p99_that_is_worse_than_the_best_stock_backends_is_marked() -> None:
    rows = {row["backend"]: row for row in example()["rows"] if row["variant"] == "mixed"}
    assert table_serving.worse(rows["codec"], rows) == ["ITL +10.0%"]
    assert table_serving.worse(rows["flashinfer"], rows) == []
    assert table_serving.worse(rows["codec"], {"codec": rows["codec"]}) == []
    rows["codec"]["itl_ms"]["p99"] = 40.0
    assert table_serving.worse(rows["codec"], rows) == []


def test_the_second_table_has_a_line_per_row() -> None:
    lines = table_serving.latencies(example()["rows"], short=True).splitlines()
    assert len(lines) == 2 + 7
    codec = next(line for line in lines if "| few-shot | codec |" in line)
    figures = "| 8.00 | 1.00x | 8.0 / 8.0 | 1.0 / 2.0 | 8,000 | - | 64, 100% | 2 / 127 |"
    assert f"{figures} plan 1.50, read 0.25 | - | - | 3 x why |" in codec
    codec = next(line for line in lines if "| arrivals-24, mixed | codec |" in line)
    assert "| 6 | 0.5 (50%) | 300, 25% | - | - | http server 97% | ITL +10.0% | - |" in codec


def test_the_table_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "j").write_text(json.dumps(example()))
    assert table_serving.main([str(tmp_path / "j"), "--latency", "--short"]) == 0
    assert "| short-64 |" in capsys.readouterr().out


@pytest.mark.parametrize("only", [None, "fa3"])
def test_the_picture(tmp_path: Path, only: str | None) -> None:
    content = example()
    content["rows"] = [r for r in content["rows"] if only in (None, r["backend"])]
    (tmp_path / "j").write_text(json.dumps(content))
    picture = tmp_path / "folder" / "p.png"
    assert plot_serving.main([str(tmp_path / "j"), "--out", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("program", [plot_serving, table_serving])
def test_a_missing_file_is_named(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["nowhere.json"])
    assert "nowhere.json does not exist" in capsys.readouterr().err


def test_no_picture_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "j").write_text(json.dumps(make_document().as_json()))
    with pytest.raises(SystemExit):
        plot_serving.main([str(tmp_path / "j")])
    assert "no measured row" in capsys.readouterr().err


def test_a_pair_of_backends() -> None:
    pair = ["--prefill-attention-backend=fa3", "--decode-attention-backend=codec"]
    assert as_flags(backend_arguments("fa3/codec")) == pair
    assert uses_codec("fa3/codec")
    assert not uses_codec("codec/fa3")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--json"),
        (["--json=j"], "one of the arguments --model --shape is required"),
        (["--json=j", "--model=m", "--workloads=fewshot"], "choose from document-qa-32"),
        (["--json=j", "--model=m", "--steps=rollout=3"], "rollout, which is no selected workload"),
        (["--json=j", "--model=m", "--arrivals=2x2,3"], "--arrivals: '2x2,3': needs 5 numbers"),
        (["--json=j", "--model=m", "--request-rates=8,0"], "need a number above 0"),
        (["--json=j", "--model=m", "--variant=mixed"], "give a name of letters and digits"),
        (["--json=j", "--model=m", "--variant=a=", "--variant=a=--x"], "name each once"),
        (["--json=j", "--model=m", "--gpus=0,0"], "name each GPU once"),
        (["--json=j", "--model=m", f"--gpus={','.join(map(str, range(9999)))}"], "fewer GPUs"),
        (["--json=j", "--model=m", "--bandwidth=0"], "need a number above 0"),
        (["--json=j", "--model=./nowhere"], "--model: ./nowhere is no directory"),
        (["--json=j", "--model=m", "--backends=codec,codec"], "name each backend once"),
    ],
)
def test_bad_command_lines_say_what_to_do(
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        bench_serving.main(words)
    assert message in capsys.readouterr().err


def test_results_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "j"
    path.write_text("{}")
    with pytest.raises(SystemExit):
        bench_serving.main([f"--json={path}", "--model=m"])
    assert "--append goes on with it" in capsys.readouterr().err
    assert path.read_text() == "{}"
