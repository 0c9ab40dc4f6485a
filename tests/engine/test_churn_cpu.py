"""A batch that changes at every step: nothing goes wrong, and nothing is left behind.

Each configuration serves a seeded traffic on SGLang's real scheduler, where requests join, leave,
abort, are retracted and come back. While a decode step computes, `req_to_token` is empty. Then a
stock backend serves the same prompts one by one, without a radix tree.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from sglang_versions import REPOSITORY, SUPPORT, run_python

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="CPU engines are for a machine without a GPU"
)

SCRIPTS = REPOSITORY / "scripts"
VOCABULARY = 512
# of one token; rounding alone makes 1e-5
LOGPROB_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Configuration:
    """How a scheduler serves, and how much it is given to do."""

    server: dict[str, Any]
    seed: int
    headroom: int
    requests: int = 60
    logprobs: bool = True
    variables: dict[str, str] = field(default_factory=dict)

    def job(self) -> str:
        churn = {
            "seed": self.seed,
            "scale": {"vocabulary": VOCABULARY, "prompt": 160, "output": 40},
            "requests": self.requests,
            "most": 8,
            "flush_every": 25,
            "logprobs": self.logprobs,
            "headroom": self.headroom,
        }
        return json.dumps({"churn": churn, "server": {"max_running_requests": 10} | self.server})


RETRACTION = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "11"}
POOL = {"overlap": 512, "mixed": 768, "drafts": 640}
CONFIGURATIONS = {
    "overlap": Configuration(
        {
            "max_total_tokens": POOL["overlap"],
            "chunked_prefill_size": 64,
            "disable_overlap_schedule": False,
        },
        seed=1,
        # plans live long enough for what they point to to be given away
        headroom=32,
        variables=RETRACTION,
    ),
    # SGLang mixes chunks into decode batches only where no log-probabilities are wanted
    "mixed": Configuration(
        {
            "max_total_tokens": POOL["mixed"],
            "page_size": 16,
            "chunked_prefill_size": 48,
            "enable_mixed_chunk": True,
        },
        seed=4,
        # and many are outgrown here
        headroom=5,
        logprobs=False,
    ),
    # with overlap only the device knows how much of the latest drafts was accepted
    "drafts": Configuration(
        {
            "max_total_tokens": POOL["drafts"],
            "chunked_prefill_size": 64,
            "disable_overlap_schedule": False,
            "speculative_algorithm": "STANDALONE",
            "speculative_num_steps": 2,
            "speculative_eagle_topk": 1,
            "speculative_num_draft_tokens": 3,
            "speculative_draft_attention_backend": "triton",
            "triton_attention_num_kv_splits": 1,
        },
        seed=1,
        headroom=32,
        # Triton's interpreter drafts
        requests=30,
        logprobs=False,
        variables=RETRACTION,
    ),
}
NAMES = list(CONFIGURATIONS)


@dataclass(frozen=True)
class Outcome:
    """What a configuration answered, and what the same prompts get alone."""

    report: dict[str, Any]
    alone: list[dict[str, Any]]

    @property
    def answers(self) -> list[dict[str, Any]]:
        return self.report["answers"]

    @property
    def pairs(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        return list(zip(self.answers, self.alone, strict=True))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("churn")
    model = folder / "model"
    # one layer: a decode step takes a third of the time
    shape = ["--layers=1", "--heads=4", "--kv-heads=1", "--head-dim=32"]
    command = [sys.executable, SCRIPTS / "serve" / "make_tiny_model.py", model, *shape]
    subprocess.run([*command, f"--vocab-size={VOCABULARY}"], check=True, capture_output=True)
    files = {name: folder / f"{name}.json" for name in NAMES}
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: _churn(model, files[name], CONFIGURATIONS[name]), NAMES))
    alone = folder / "alone.json"
    _probe(model, alone, json.dumps({"alone": [str(files[name]) for name in NAMES]}))
    expected = json.loads(alone.read_text())
    return {
        name: Outcome(json.loads(file.read_text()), expected[str(file)])
        for name, file in files.items()
    }


def _churn(model: Path, file: Path, wanted: Configuration) -> None:
    variables = {"SGLANG_CODEC_CHECK_SHARING": "1"} | wanted.variables
    # SGLang's own memory check, in every iteration
    variables["SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY"] = "1"
    _probe(model, file, wanted.job(), **variables)


def _probe(model: Path, file: Path, job: str, **variables: str) -> None:
    probe = str(SUPPORT / "churn_probe.py")
    ended = run_python(probe, str(model), str(file), job, paths=(SCRIPTS / "serve",), **variables)
    assert ended.returncode == 0, ended.stdout[-1000:] + ended.stderr[-3000:]


@pytest.mark.parametrize("name", NAMES)
def test_every_token_is_the_one_that_the_prompt_gets_alone(
    outcomes: dict[str, Outcome], name: str
) -> None:
    pairs = outcomes[name].pairs
    differing = [got["name"] for got, alone in pairs if got["output_ids"] != alone["output_ids"]]
    assert not differing


def test_every_log_probability_is_the_one_that_the_prompt_gets_alone(
    outcomes: dict[str, Outcome],
) -> None:
    for got, alone in outcomes["overlap"].pairs:
        assert got["logprobs"] == pytest.approx(alone["logprobs"], abs=LOGPROB_TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_who_stays_gets_all_tokens(outcomes: dict[str, Outcome], name: str) -> None:
    for answer in outcomes[name].answers:
        if not answer["aborted"]:
            assert len(answer["output_ids"]) == answer["wanted"]


@pytest.mark.parametrize("name", NAMES)
def test_pools_and_tree_return_to_where_they_were(outcomes: dict[str, Outcome], name: str) -> None:
    rows = 10
    for drained, flushed in outcomes[name].report["levels"]:
        assert drained["kv_free"] + drained["kv_in_tree"] == POOL[name]
        assert (drained["kv_locked"], drained["rows_free"]) == (0, rows)
        assert flushed == {
            "kv_free": POOL[name],
            "kv_in_tree": 0,
            "kv_locked": 0,
            "rows_free": rows,
        }


@pytest.mark.parametrize("name", NAMES)
def test_every_plan_that_shares_holds_the_debug_invariant(
    outcomes: dict[str, Outcome], name: str
) -> None:
    report = outcomes[name].report
    assert report["checked"] == report["sharing"] > 0
    assert report["fallbacks"] == {}


def test_the_traffic_is_what_this_is_about(outcomes: dict[str, Outcome]) -> None:
    """Otherwise the tests above would say little."""
    for name, outcome in outcomes.items():
        totals, modes = outcome.report["totals"], outcome.report["modes"]
        assert outcome.report["overlap"] == (name != "mixed")
        assert 0.2 < totals["plans"] / totals["steps"] < 0.9
        assert outcome.report["sharing"] > 0.3 * totals["plans"]
        assert totals["kv_tokens_read"] < totals["kv_tokens_stock"]
        assert any(answer["aborted"] and answer["output_ids"] for answer in outcome.answers)
        assert len(outcome.report["levels"]) >= 3
        served = "TARGET_VERIFY" if name == "drafts" else "DECODE"
        assert modes[served] + modes.get("MIXED", 0) == totals["steps"]
    overlap, mixed, drafts = (outcomes[name].report for name in ("overlap", "mixed", "drafts"))
    assert sum(answer["retractions"] for answer in overlap["answers"]) > 3
    assert sum(answer["retractions"] for answer in drafts["answers"]) > 1
    assert mixed["modes"]["MIXED"] > 20
    names = [answer["name"] for answer in overlap["answers"]]
    # a conversation comes back under its own id
    assert len(set(names)) < len(names)
