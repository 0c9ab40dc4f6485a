"""Log-probabilities are compared where they can be, and the verdict can be no."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import compare_logprobs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from library.servers.clients import Completion, GenerationError, Request
from logprobs.differences import Difference, compare, verdict
from logprobs.picture import draw
from logprobs.prompts import LEAST, LONGEST_BRANCH, make_prompts


@given(
    lengths=st.lists(st.integers(2 * LEAST, 300), min_size=1, max_size=4),
    count=st.integers(1, 40),
    seed=st.integers(0, 5),
)
def test_prompts_share_the_beginnings_of_the_texts(
    lengths: list[int], count: int, seed: int
) -> None:
    texts = [list(range(1000 * i, 1000 * i + n)) for i, n in enumerate(lengths)]
    prompts = make_prompts(texts, count, 3, seed)
    assert prompts == make_prompts(texts, count, 3, seed)
    assert len(prompts) == count
    for number, prompt in enumerate(prompts):
        text = texts[number % len(texts)]
        common = sum(1 for _ in _common(prompt.input_ids, text))
        assert common >= LEAST
        assert len(prompt.input_ids) - common <= LONGEST_BRANCH
        branches = number // len(texts) % 2
        assert branches or len(prompt.input_ids) == common


def _common(one: Sequence[int], other: Sequence[int]) -> Iterator[int]:
    for a, b in zip(one, other, strict=False):
        if a != b:
            return
        yield a


def test_texts_that_are_too_short_are_refused() -> None:
    with pytest.raises(ValueError, match=r"texts of \[5\] tokens: each needs at least 32"):
        make_prompts([range(100), range(5)], 4, 2, 0)


def completion(*steps: tuple[int, dict[int, float]]) -> Completion:
    done = Completion(Request("a", (1,), len(steps)))
    done.output_ids = [token for token, _ in steps]
    done.top_logprobs = [list(top.items()) for _, top in steps]
    return done


def test_steps_are_compared_up_to_the_first_different_token() -> None:
    one = completion((4, {4: -1.0}), (5, {5: -0.5}), (6, {6: -0.7, 8: -0.8}), (7, {7: -0.1}))
    other = completion((4, {4: -9.0}), (5, {5: -0.75}), (8, {8: -0.6, 6: -1.7}), (7, {7: -5.0}))
    # the first token is prefill's, and after 6 and 8 nothing can be compared
    found = compare("codec", "fa3", [one], [other])
    assert found.values.tolist() == pytest.approx([0.25, 1.0])
    assert (found.parted, found.unseen, found.is_ours) == (1, 0, True)
    unlike = completion((4, {4: -1.0}), (9, {9: -0.5}))
    found = compare("fa3", "triton", [unlike], [other])
    assert (len(found.values), found.parted, found.unseen, found.is_ours) == (0, 1, 1, False)


def difference(first: str, second: str, scale: float) -> Difference:
    values = scale * np.random.default_rng(0).random(500)
    return Difference(first, second, values, 0, 0)


@pytest.mark.parametrize(("scale", "holds"), [(0.5, True), (1.0, True), (1.2, False)])
def test_ours_must_not_be_wider(scale: float, holds: bool) -> None:
    pairs = [difference("fa3", "triton", 1.0), difference("codec", "fa3", scale)]
    pairs.append(difference("codec", "triton", 0.1))
    assert verdict(pairs)["no_wider"] is holds


def test_without_two_stock_backends_there_is_no_verdict() -> None:
    assert verdict([difference("codec", "fa3", 1.0)])["no_wider"] is None


class Client:
    """Answers as a model whose log-probabilities are off by `error`."""

    def __init__(self, error: float) -> None:
        self.error = error

    def generate(self, requests: Sequence[Request], _sampling: Any) -> list[Completion]:
        random = np.random.default_rng(len(requests))
        done = []
        for request in requests:
            steps = [(7, {7: -1.0 + self.error * random.random()})] * request.max_new_tokens
            done.append(completion(*steps))
        return done


def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: dict[str, float]
) -> tuple[int, dict[str, Any]]:
    @contextmanager
    def engine(_model: str, backend: str, _settings: Any, _dump: Path) -> Iterator[Any]:
        if backend not in errors:
            raise GenerationError("it does not start")
        yield SimpleNamespace(client=Client(errors[backend]))

    monkeypatch.setattr(compare_logprobs, "started_engine", engine)
    encoder = SimpleNamespace(encode=lambda text: list(text.encode()))
    monkeypatch.setattr(compare_logprobs, "make_encoder", lambda _model: encoder)
    file, plot = tmp_path / "out.json", tmp_path / "out.png"
    words = ["--model=m", "--prompts=20", "--new-tokens=6", "--longest=200"]
    backends = "fa3/codec,fa3,fa3/triton,fa3/flashinfer"
    words += ["--backend", backends, "--json", str(file), "--plot", str(plot)]
    status = compare_logprobs.main(words)
    assert plot.stat().st_size > 10_000
    return status, json.loads(file.read_text())


def test_the_program_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {"fa3/codec": 0.012, "fa3": 0.01, "fa3/triton": 0.02, "fa3/flashinfer": 0.03}
    status, document = run(tmp_path, monkeypatch, errors)
    assert (status, document["verdict"]["no_wider"]) == (0, True)
    assert len(document["differences"]) == 6
    assert all(pair["positions"] == 20 * 5 for pair in document["differences"])
    assert {"gpu", "versions", "commit", "command", "model", "seed"} <= set(document)
    # from the file alone
    draw(document, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "out.png").read_bytes()

    status, document = run(tmp_path, monkeypatch, errors | {"fa3/codec": 0.5})
    assert (status, document["verdict"]["no_wider"]) == (1, False)


def test_a_backend_that_does_not_start_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = {"fa3/codec": 0.01, "fa3": 0.01, "fa3/triton": 0.02}
    _, document = run(tmp_path, monkeypatch, errors)
    assert document["backends"][-1]["why"] == "GenerationError: it does not start"
    assert len(document["differences"]) == 3
