"""The churn test's traffic, and that it fails when something is wrong."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import churn
import pytest
from churn_server import fake_server
from churning import checks, rounds
from churning.client import Served
from churning.memory import Memory
from churning.traffic import FIRST_TOKEN, Ask, Scale, Traffic

SCALE = Scale(vocabulary=50, prompt=120, output=20)


def asks(seed: int, count: int, scale: Scale = SCALE) -> list[Ask]:
    """Requests that are answered at once, with as many tokens as they asked for."""
    traffic, served = Traffic(seed, scale), []
    for ask in itertools.islice(traffic, count):
        traffic.finished(ask, [FIRST_TOKEN] * ask.max_new_tokens)
        served.append(ask)
    return served


def test_the_seed_decides_everything() -> None:
    assert asks(1, 300) == asks(1, 300) != asks(2, 300)


def test_requests_stay_within_the_scale() -> None:
    for ask in asks(0, 2000):
        assert 1 <= len(ask.input_ids) <= SCALE.prompt
        assert FIRST_TOKEN <= min(ask.input_ids) <= max(ask.input_ids) < SCALE.vocabulary
        assert 1 <= ask.max_new_tokens <= SCALE.output
        assert ask.abort_after is None or ask.abort_after <= ask.max_new_tokens


def test_all_kinds_of_sharing_occur() -> None:
    served = asks(0, 1000)
    kinds = Counter(ask.kind for ask in served)
    assert set(kinds) == {"few-shot", "growing", "tree", "agent", "twins", "stranger"}
    assert min(kinds.values()) > 30
    assert {1, SCALE.output} <= {ask.max_new_tokens for ask in served}
    assert sum(ask.abort_after is not None for ask in served) > 50
    prompts = [ask.input_ids for ask in served]
    assert len(set(prompts)) < len(prompts)


def test_a_name_comes_back_only_after_its_answer() -> None:
    traffic = Traffic(0, SCALE)
    open_names: list[Ask] = []
    for ask in itertools.islice(traffic, 1000):
        assert ask.name not in [other.name for other in open_names]
        open_names.append(ask)
        if len(open_names) > 8:
            traffic.finished(open_names.pop(0), [FIRST_TOKEN])


def test_a_name_rests_before_it_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: dict[str, float] = {}
    pauses: list[float] = []

    async def answer_at_once(_session: object, _url: str, ask: Ask) -> Served:
        if ask.name in ended:
            pauses.append(time.monotonic() - ended[ask.name])
        await asyncio.sleep(0.002)
        ended[ask.name] = time.monotonic()
        return Served(ask, [FIRST_TOKEN] * ask.max_new_tokens)

    monkeypatch.setattr(rounds, "serve", answer_at_once)
    monkeypatch.setattr(rounds, "NAME_REST_S", 0.1)
    rounds.Round("", Traffic(0, SCALE), 8, 1500, time.monotonic() + 60, seed=0).run()
    assert len(pauses) > 20
    assert min(pauses) >= 0.1


def test_a_conversation_goes_on_from_its_answer() -> None:
    answer = [FIRST_TOKEN + 1] * 5
    traffic, histories, whole = Traffic(3, SCALE), {}, 0
    for ask in itertools.islice(traffic, 500):
        if ask.kind == "agent":
            history = histories[ask.name]
            assert ask.input_ids[0] == history[0]
            whole += ask.input_ids[: len(history)] == history
        histories[ask.name] = ask.input_ids + tuple(answer)
        traffic.finished(ask, answer)
    assert whole > 10


def test_no_name_begins_another_one() -> None:
    """SGLang aborts all requests whose id begins with the one given."""
    names = sorted({ask.name for ask in asks(0, 1000)})
    assert not any(b.startswith(a) for a, b in itertools.pairwise(names))


# the program -----------------------------------------------------------------------------------


def run(tmp_path: Path, url: str, *options: str) -> tuple[int, dict[str, Any]]:
    file = tmp_path / "out.json"
    words = ["--url", url, "--vocabulary=50", "--prompt=60", "--output=8", "--concurrency=4"]
    status = churn.main([*words, "--alone=3", "--json", str(file), *options])
    return status, json.loads(file.read_text())


def failed(document: dict[str, Any]) -> list[str]:
    return [check["name"] for check in document["checks"] if check["holds"] is False]


def test_a_good_server_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server() as server:
        status, document = run(tmp_path, server.url, "--requests=60", "--round=25")
    assert (status, failed(document), document["ok"]) == (0, [], True)
    assert document["requests"] == 60
    assert len(server.asked) == 60 + 3
    assert document["flushes"] == server.flushes - 1 == 3
    assert document["aborted"] > 0
    assert server.aborts
    assert document["tokens_in_use_after_flush"] == [0] * 4
    assert {"gpu", "versions", "commit", "command", "seed"} <= set(document)
    assert "FAILED" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("faults", "check"),
    [
        ({"missing": 1}, "no request failed"),
        ({"refuses": True}, "no request failed"),
        ({"leaked": 3}, "the KV pool is as empty after every flush as at the start"),
    ],
)
def test_a_bad_server_fails(tmp_path: Path, faults: dict[str, Any], check: str) -> None:
    with fake_server(**faults) as server:
        status, document = run(tmp_path, server.url, "--requests=30", "--round=10")
    assert status == 1
    assert check in failed(document)


def test_a_server_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert churn.main(["--url", "http://127.0.0.1:9", "--requests=1"]) == 1
    assert "no SGLang server answers" in capsys.readouterr().err


def test_the_time_limit_ends_it(tmp_path: Path) -> None:
    with fake_server() as server:
        status, document = run(tmp_path, server.url, "--minutes=0.02", "--round=20")
    assert status == 0
    assert document["requests"] > 0
    assert document["seconds"] < 30


def test_a_server_started_here_checks_itself_and_gets_the_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[str, Any] = {}
    for name in churn.VARIABLES:
        # also forgets afterwards what the program sets
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    with fake_server() as fake:

        @contextmanager
        def server(backend: str, flags: list[str], _logs: Path, **_: Any) -> Iterator[Any]:
            started.update(os.environ, backend=backend, flags=flags)
            log = tmp_path / "server.log"
            log.write_text("")
            yield SimpleNamespace(url=fake.url, log=log)

        monkeypatch.setattr(churn, "running_server", server)
        file = tmp_path / "out.json"
        words = ["--shape=tiny", "--requests=20", "--prompt=60", "--output=8", "--concurrency=4"]
        words += ["--logs", str(tmp_path), "--json", str(file), "--", "--pp-size=2"]
        assert churn.main(words) == 0
    assert started["SGLANG_CODEC_CHECK_SHARING"] == "1"
    assert started["SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY"] == "1"
    assert started["backend"] == "codec"
    assert started["flags"][-1] == "--pp-size=2"
    document = json.loads(file.read_text())
    assert document["server_flags"][-1] == "--pp-size=2"
    assert document["server_variables"] == churn.VARIABLES


# single checks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "holds"),
    [
        ("Decode batch, #running-req: 3\nKV cache pool is full. #retracted_reqs: 2\n", True),
        ("Traceback (most recent call last):\n  File ...\n", False),
        ("sglang_codec.sharing_check.SharingMismatch: shared run 3\n", False),
        ("ValueError: pool memory leak detected! total=512\n", False),
        (None, None),
    ],
)
def test_the_log_is_read(log: str | None, holds: bool | None) -> None:
    assert checks.clean_log(log).holds is holds


def test_memory_may_grow_up_to_the_limit() -> None:
    grown = Memory(1000.0, None).growth(Memory(800.0, None))
    assert grown.host == checks.MOST_GROWTH_MIB
    assert checks.no_growth("host", grown.host).holds is True
    assert checks.no_growth("device", grown.device).holds is None
    assert checks.no_growth("host", grown.host + 1).holds is False


def test_plans_must_be_made_and_reused() -> None:
    counters = {"plans": 3, "decode_steps": 9, "fallbacks": {}}
    assert checks.planned(counters).holds
    assert not checks.planned(counters | {"plans": 9}).holds
    assert not checks.planned(counters | {"plans": 0}).holds
    assert checks.no_fallback(counters).holds
    assert not checks.no_fallback(counters | {"fallbacks": {"why": 1}}).holds
    assert checks.planned(None).holds is checks.no_fallback(None).holds is None


def test_other_tokens_alone_fail_only_where_they_must_be_equal() -> None:
    ask = Ask("a", "tree", (3, 4), 2)
    pair = (Served(ask, [5, 6]), Served(ask, [5, 7]))
    assert checks.same_alone([pair], required=True).holds is False
    assert checks.same_alone([pair], required=False).holds is None
    broken = (pair[0], Served(ask, error="500"))
    assert checks.same_alone([broken], required=False).holds is False


def test_retractions_are_counted_in_the_log() -> None:
    log = "Retract requests. #retracted_reqs: 2\nTesting. #retracted_reqs: 3, #new"
    assert checks.retractions(log, []) == 5
    ask = Ask("a", "tree", (3, 4), 2)
    assert checks.retractions(None, [Served(ask, retractions=4)]) == 4
