"""The workload programs without an engine: generators, streams, comparison, reports, --help."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from pathlib import Path

import few_shot
import pytest
import tree_of_thought
from library.options import parse_backends, parse_setting
from library.servers.clients import Completion, GenerationError, Request, Sampling, collect
from library.servers.clients import generate_payload as payload_of
from library.servers.encoders import HashEncoder, has_tokenizer, make_encoder
from library.servers.engines import engine_arguments
from library.servers.sharing import Sharing, explain, read_sharing
from rich.console import Console
from workloads.comparison import compare
from workloads.pictures import draw
from workloads.problems import make_problems, read_answer
from workloads.report import as_json, print_comparison, print_runs, print_sharing
from workloads.runs import BackendRun, Batch, Session
from workloads.thoughts import Thought, best, draw_tree, grow, level_sizes, propose

SCRIPTS = Path(few_shot.__file__).parent
ENCODER = HashEncoder(512)


def completion(
    ids: list[int],
    *,
    prompt: tuple[int, ...] = (5, 6),
    top: list[list[tuple[int, float]]] | None = None,
) -> Completion:
    request = Request(f"request {prompt}", prompt, 8)
    done = Completion(request, output_ids=ids, first_token_s=0.5, last_token_s=0.5 + len(ids))
    done.top_logprobs = top or []
    done.logprobs = [-1.0] * len(ids)
    return done


# prompts -----------------------------------------------------------------------------------------


def test_problems_follow_the_seed_and_differ() -> None:
    problems = make_problems(200, seed=3)
    assert problems == make_problems(200, seed=3)
    assert problems != make_problems(200, seed=4)
    assert len({problem.question for problem in problems}) == 200


def test_worked_examples_end_with_their_answers() -> None:
    for problem in make_problems(30, seed=1):
        prompt, completion_text = problem.worked().split("Answer:")
        assert problem.asked() == prompt + "Answer:"
        assert read_answer(completion_text) == problem.answer


def test_read_answer_ignores_what_follows_the_next_question() -> None:
    assert read_answer(" 2 + 2 = 4. Question: The answer is 7.") is None


@pytest.mark.parametrize("shared_tokens", [None, 17, 2000])
def test_few_shot_requests_begin_with_the_common_prompt(shared_tokens: int | None) -> None:
    common, requests, answers = few_shot.make_requests(
        ENCODER, shots=3, questions=5, max_new_tokens=4, seed=0, shared_tokens=shared_tokens
    )
    assert shared_tokens in (None, len(common))
    assert len(requests) == len(answers) == 5
    assert len({request.input_ids for request in requests}) == 5
    assert all(request.input_ids[: len(common)] == common for request in requests)


def test_tree_prompts_extend_their_parents() -> None:
    root = tree_of_thought.make_root(ENCODER, shots=1, seed=0)
    children = [child for child, _ in propose([root], ENCODER, 3, 4)]
    grown = [grow(child, completion([1, 2], prompt=child.ids)) for child in children]
    level = propose(grown, ENCODER, 2, 4)
    assert [child.path for child, _ in level[:3]] == [(1, 1), (1, 2), (2, 1)]
    for child, request in level:
        parent = grown[child.path[0] - 1]
        assert request.input_ids[: len(parent.ids)] == parent.ids
    assert len({request.input_ids for _, request in level}) == 6


def test_best_thoughts_by_mean_logprob_ties_to_the_earlier() -> None:
    thoughts = [
        Thought((1,), (0,), -4.0, 2),
        Thought((2,), (0,), -3.0, 3),
        Thought((3,), (0,), -1.0, 1),
        Thought((4,), (0,), -9.0, 1),
    ]
    assert [thought.path for thought in best(thoughts, 1)] == [(2,)]
    assert [thought.path for thought in best(thoughts, 3)] == [(1,), (2,), (3,)]
    assert draw_tree(thoughts, best(thoughts, 1), ENCODER).splitlines()[1].startswith("* 2")


def test_a_thought_without_logprobs_is_refused() -> None:
    unscored = completion([1, 2])
    unscored.logprobs = []
    with pytest.raises(ValueError, match="0 log-probabilities came back for 2 tokens"):
        grow(Thought((1,), (5, 6)), unscored)


def test_level_sizes() -> None:
    assert level_sizes(branching=2, keep=3, depth=4) == [2, 4, 6, 6]


# token ids ---------------------------------------------------------------------------------------


def test_made_up_ids_are_ordinary_and_repeatable() -> None:
    ids = ENCODER.encode("the same words, the same ids")
    assert ids[:2] == ids[4:6]
    assert all(16 <= token < 512 for token in ids)


def test_a_model_without_tokenizer_gets_made_up_ids(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 300}))
    assert not has_tokenizer(str(tmp_path))
    assert make_encoder(str(tmp_path)).vocab_size == 300


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="vocabulary of 16 tokens"):
        HashEncoder(16)


def test_an_empty_request_is_refused() -> None:
    with pytest.raises(ValueError, match="0 prompt tokens"):
        Request("nothing", (), 4)


# streams -----------------------------------------------------------------------------------------


def chunk(index: int, ids: list[int], total: int, **meta: object) -> dict:
    return {
        "index": index,
        "output_ids": ids,
        "meta_info": {"completion_tokens": total, "cached_tokens": 3, **meta},
    }


CUMULATIVE = [chunk(0, [7], 1), chunk(1, [4], 1), chunk(0, [7, 8, 9], 3), chunk(1, [4, 5], 2)]
INCREMENTAL = [chunk(0, [7], 1), chunk(1, [4], 1), chunk(0, [8, 9], 3), chunk(1, [5], 2)]


@pytest.mark.parametrize("chunks", [CUMULATIVE, INCREMENTAL], ids=["cumulative", "incremental"])
def test_collect_folds_both_kinds_of_stream(chunks: list[dict]) -> None:
    requests = [Request("a", (1,), 3), Request("b", (2,), 2)]
    counted: list[int] = []
    first, second = collect(requests, chunks, started=0.0, on_token=counted.append)
    assert (first.output_ids, second.output_ids) == ([7, 8, 9], [4, 5])
    assert sum(counted) == 5
    assert first.cached_tokens == 3
    assert first.seconds_per_token() >= 0


def test_collect_reads_logprobs() -> None:
    meta = {
        "output_token_logprobs": [(-0.5, 7, None)],
        "output_top_logprobs": [[(-0.5, 7, None), (-0.75, 9, None)]],
    }
    (done,) = collect([Request("a", (1,), 1)], [chunk(0, [7], 1, **meta)], started=0.0)
    assert done.logprobs == [-0.5]
    assert done.top_logprobs == [[(7, -0.5), (9, -0.75)]]


def test_collect_records_when_chunks_arrived() -> None:
    (first, second) = collect(
        [Request("a", (1,), 3), Request("b", (2,), 2)], CUMULATIVE, started=0.0
    )
    assert [new for _, new in first.arrivals] == [1, 2]
    assert [new for _, new in second.arrivals] == [1, 1]
    assert first.arrivals[0][0] == first.first_token_s < first.arrivals[1][0]


def test_a_chunk_may_hold_more_tokens_than_it_counts() -> None:
    # SGLang sends a list that it has gone on filling since it counted
    chunks = [chunk(0, [7], 1), chunk(0, [7, 8, 9], 2), chunk(0, [7, 8, 9], 3)]
    (done,) = collect([Request("a", (1,), 3)], chunks, started=0.0)
    assert done.output_ids == [7, 8, 9]
    assert [new for _, new in done.arrivals] == [1, 2]


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([{"error": {"message": "too long"}}], "too long"),
        ([chunk(0, [], 0, finish_reason={"type": "abort", "message": "full"})], "aborted: full"),
        ([], "no token came back for 1 requests, first 'a'"),
    ],
)
def test_collect_raises_what_the_server_says(chunks: list[dict], message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        collect([Request("a", (1,), 1)], chunks, started=0.0)


def test_payload_is_greedy_and_asks_for_logprobs_only_on_request() -> None:
    requests = [Request("a", (1, 2), 3)]
    plain = payload_of(requests, Sampling())
    assert plain["input_ids"] == [[1, 2]]
    assert plain["sampling_params"][0]["temperature"] == 0
    assert "return_logprob" not in plain
    assert payload_of(requests, Sampling(top=2))["top_logprobs_num"] == 2


def test_payload_asks_for_longer_chunks_only_on_request() -> None:
    requests = [Request("a", (1, 2), 3)]
    assert "stream_interval" not in payload_of(requests, Sampling())["sampling_params"][0]
    asked = payload_of(requests, Sampling(stream_interval=4))["sampling_params"][0]
    assert (asked["stream_interval"], asked["max_new_tokens"]) == (4, 3)


# comparison --------------------------------------------------------------------------------------


def test_identical_completions_agree() -> None:
    compared = compare("x", [completion([1, 2])], "y", [completion([1, 2])])
    assert (compared.identical, compared.compared, compared.agrees(0.0)) == (1, 1, True)


@pytest.mark.parametrize(
    ("got", "gap", "tie"),
    [(3, 0.01, True), (3, 0.5, False), (4, 0.01, False)],
    ids=["runner-up within rounding", "runner-up too far", "not the runner-up"],
)
def test_only_a_close_runner_up_is_a_tie(got: int, gap: float, tie: bool) -> None:
    top = [[(1, -0.1), (9, -3.0)], [(2, -0.5), (3, -0.5 - gap)]]
    compared = compare("x", [completion([1, 2], top=top)], "y", [completion([1, got])])
    (difference,) = compared.differences
    assert (difference.position, difference.expected, difference.got) == (1, 2, got)
    assert difference.gap_reference == pytest.approx(gap)
    assert difference.is_tie(0.1) is tie
    assert compared.agrees(0.1) is tie


def test_without_logprobs_a_difference_is_not_called_a_tie() -> None:
    compared = compare("x", [completion([1, 2])], "y", [completion([1])])
    (difference,) = compared.differences
    assert (difference.got, difference.gap_reference) == (None, None)
    assert not compared.agrees(100.0)


def test_unmatched_prompts_are_counted_and_need_a_reason() -> None:
    compared = compare("x", [completion([1])], "y", [completion([1], prompt=(8,))])
    assert (compared.compared, compared.unmatched, compared.agrees(0.1)) == (0, 2, False)


# options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("page_size=16", ("page_size", 16)),
        ("--mem-fraction-static=0.8", ("mem_fraction_static", 0.8)),
        ("dtype=bfloat16", ("dtype", "bfloat16")),
        ("disable_cuda_graph=True", ("disable_cuda_graph", True)),
    ],
)
def test_engine_setting(text: str, expected: tuple[str, object]) -> None:
    assert parse_setting(text) == expected


@pytest.mark.parametrize("text", ["codec,codec", "", "a/b/c", "/codec"])
def test_bad_backend_lists_are_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="--backend"):
        parse_backends(text)


def test_engine_arguments_split_a_pair_and_settings_win() -> None:
    pair = engine_arguments("m", "fa3/codec", {"dtype": "float16"}, gpu=False)
    assert pair["prefill_attention_backend"] == "fa3"
    assert pair["decode_attention_backend"] == "codec"
    assert (pair["device"], pair["dtype"]) == ("cpu", "float16")
    assert "device" not in engine_arguments("m", "codec", {}, gpu=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--model PATH or --url"),
        (["--url", "http://x", "--engine", "page_size=1"], "not with --url"),
        (["--model", "m", "--questions", "0"], "at least 1"),
        (["--model", "m", "--engine", "page_size"], "is not key=value"),
    ],
)
def test_bad_command_lines_say_what_to_do(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        few_shot.main(options)
    assert message in capsys.readouterr().err


# results -----------------------------------------------------------------------------------------


TOTALS = {"steps": 4, "plans": 1, "kv_tokens_read": 250, "kv_tokens_stock": 1000}


def make_run(name: str, ids: list[int], *, shared: bool = False) -> BackendRun:
    run = BackendRun(name, 1.5, [Batch("questions", 2.0, (completion(ids),))])
    run.sharing = Sharing(**TOTALS, fallbacks={"a reason": 2}) if shared else None
    return run


def test_run_figures() -> None:
    run = make_run("codec", [1, 2, 3])
    assert (run.output_tokens, run.tokens_per_s, run.prompt_tokens) == (3, 1.5, 2)
    assert run.mean_tpot_ms == pytest.approx(1500)


def test_session_records_batches_but_not_the_warm_up() -> None:
    class Echo:
        def generate(self, requests, sampling, on_token=None):
            return [Completion(request, output_ids=[1]) for request in requests]

    run = BackendRun("x", None)
    session = Session(Echo(), Sampling(), run, lambda count: None)
    session.warm_up(Request("common", (1,), 1))
    session.serve("questions", [Request("a", (1,), 1), Request("b", (2,), 1)])
    assert [len(batch.completions) for batch in run.batches] == [2]


def test_dump_is_read_and_a_broken_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "dump.json"
    assert read_sharing(path) is None
    path.write_text('{"totals": {"steps": 4')
    assert read_sharing(path, attempts=1) is None
    path.write_text(json.dumps({"forest": {}, "plan": {}, "totals": TOTALS | {"fallbacks": {}}}))
    assert read_sharing(path).saved == pytest.approx(0.75)


def test_what_cannot_be_drawn_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dump: dict) -> str:
        raise ValueError("a plan of another version")

    monkeypatch.setattr("sglang_codec.explain.explain_text", refuse)
    assert "no decode batch" in explain(Sharing(**TOTALS))
    assert "another version" in explain(Sharing(**TOTALS, dump={"forest": {}, "plan": {}}))


def test_report_says_what_was_shared_and_what_differs() -> None:
    console = Console(record=True, width=160)
    runs = [make_run("torch_native", [1, 2]), make_run("codec", [1, 3], shared=True)]
    compared = compare("torch_native", runs[0].completions, "codec", runs[1].completions)
    print_runs(console, runs)
    print_sharing(console, "codec", Sharing(**TOTALS, fallbacks={"a reason": 2}))
    print_comparison(console, compared, tie_gap=0.1)
    text = console.export_text()
    assert "0 of 1 requests have identical tokens" in text
    assert "token 1 is 3, not 2 (--logprobs tells a tie from an error)" in text
    assert "read 250 KV tokens" in text
    assert "75.0% saved" in text
    assert "a reason" in text


def test_results_are_json_and_a_picture(tmp_path: Path) -> None:
    runs = [make_run("torch_native", [1, 2]), make_run("codec", [1, 2], shared=True)]
    compared = compare("torch_native", runs[0].completions, "codec", runs[1].completions)
    document = as_json({"name": "w"}, runs, [{}, {}], [compared], ENCODER, 0.1)
    results = json.loads(json.dumps(document))
    assert results["comparisons"][0]["identical"] == 1
    assert results["runs"][1]["sharing"]["saved"] == pytest.approx(0.75)
    assert results["runs"][0]["requests"][0]["output_ids"] == [1, 2]
    picture = tmp_path / "folder" / "picture.png"
    draw(picture, "title", runs)
    assert picture.read_bytes().startswith(b"\x89PNG")
