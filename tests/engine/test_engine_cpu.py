"""The real SGLang serves with `codec` on the CPU: same greedy tokens as `torch_native`.

Every configuration starts one server and serves all workloads; the tests look at what came back.
Requests go over HTTP; the last test runs the program `few_shot.py` with an engine of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from library.servers.clients import Completion, Request, Sampling, ServerClient
from library.servers.encoders import HashEncoder
from library.servers.sharing import Sharing, read_sharing
from sglang_server import cpu_environment, sglang_server
from workloads.problems import few_shot_texts
from workloads.thoughts import Thought, best, grow, propose

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="CPU engines are for a machine without a GPU"
)

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

REFERENCE = "torch_native"
QUESTIONS, NEW_TOKENS = 6, 8
VOCABULARY = 512


@dataclass(frozen=True)
class Configuration:
    """A server to start, and what it shows."""

    backend: str
    flags: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)


CODEC = {"SGLANG_CODEC_CHECK_SHARING": "1"}
CONFIGURATIONS = {
    "reference": Configuration(REFERENCE),
    "page 1": Configuration("codec", variables=CODEC),
    "page 16, retraction": Configuration(
        "codec",
        ("--page-size=16", "--chunked-prefill-size=128"),
        CODEC | {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "5"},
    ),
}
CODEC_NAMES = [name for name, server in CONFIGURATIONS.items() if server.backend == "codec"]


@dataclass(frozen=True)
class Served:
    """What one server answered, by workload."""

    completions: dict[str, list[Completion]]
    sharing: Sharing | None
    flags: dict[str, object]
    log: str


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("models") / "tiny"
    command = [sys.executable, SCRIPTS / "serve" / "make_tiny_model.py", model]
    subprocess.run([*command, f"--vocab-size={VOCABULARY}"], check=True, capture_output=True)
    return model


@pytest.fixture(scope="session")
def served(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Served]:
    """Starts a configuration's server at its first use, one server at a time."""
    results: dict[str, Served] = {}

    def serve(name: str) -> Served:
        if name not in results:
            wanted = CONFIGURATIONS[name]
            folder = tmp_path_factory.mktemp("server")
            with sglang_server(
                tiny_model,
                wanted.backend,
                folder,
                flags=wanted.flags,
                variables=wanted.variables,
            ) as server:
                client = ServerClient(server.url, timeout_s=300)
                flags = client.info()
                completions = _serve_everything(client)
            results[name] = Served(
                completions, read_sharing(server.dump), flags, server.log.read_text()
            )
        return results[name]

    return serve


def _serve_everything(client: ServerClient) -> dict[str, list[Completion]]:
    encoder = HashEncoder(VOCABULARY)
    sampling = Sampling(top=2)
    results = {}
    # cold first, each with examples of its own: nothing of them is in the tree
    for seed, name in enumerate(("few-shot, cold", "few-shot, warm")):
        common_text, problems = few_shot_texts(4, QUESTIONS, seed)
        common = tuple(encoder.encode(common_text))
        requests = [
            Request(f"{name} {number}", common + tuple(encoder.encode(p.asked())), NEW_TOKENS)
            for number, p in enumerate(problems)
        ]
        if name.endswith("warm"):
            client.generate([Request("common", common, 1)], sampling)
        results[name] = client.generate(requests, sampling)
    results["lengths"] = client.generate(_different_lengths(encoder), sampling)
    results["tree of thoughts"] = _think(client, encoder)
    return results


def _different_lengths(encoder: HashEncoder) -> list[Request]:
    """Requests that share nothing, a part, or all of their prompt, and end one after the other."""
    common_text, _ = few_shot_texts(2, 1, seed=7)
    common = encoder.encode(common_text)
    prompts = [common, common[:50], common + encoder.encode("and then"), encoder.encode("alone")]
    return [
        Request(f"length {number}", tuple(prompt), 2 + 2 * number)
        for number, prompt in enumerate(prompts)
    ]


def _think(client: ServerClient, encoder: HashEncoder) -> list[Completion]:
    frontier = [Thought((), tuple(encoder.encode(few_shot_texts(1, 1, seed=9)[0])))]
    served = []
    for _ in range(2):
        proposals = propose(frontier, encoder, branching=2, max_new_tokens=5)
        completions = client.generate([request for _, request in proposals], Sampling(top=2))
        children = (child for child, _ in proposals)
        frontier = best([grow(c, done) for c, done in zip(children, completions, strict=True)], 2)
        served += completions
    return served


@pytest.mark.parametrize("workload", ["few-shot, cold", "few-shot, warm", "lengths", "tree"])
@pytest.mark.parametrize("name", CODEC_NAMES)
def test_tokens_equal_the_stock_backends(
    served: Callable[[str], Served], name: str, workload: str
) -> None:
    workload = "tree of thoughts" if workload == "tree" else workload
    expected = served("reference").completions[workload]
    got = served(name).completions[workload]
    assert [c.request for c in got] == [c.request for c in expected]
    assert [c.output_ids for c in got] == [c.output_ids for c in expected]


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_shared_prefix_is_read_once(served: Callable[[str], Served], name: str) -> None:
    sharing = served(name).sharing
    assert sharing is not None
    assert sharing.fallbacks == {}
    assert 0 < sharing.kv_tokens_read < 0.6 * sharing.kv_tokens_stock


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_overlap_schedule_is_on(served: Callable[[str], Served], name: str) -> None:
    flags = served(name).flags
    assert flags["decode_attention_backend"] == "codec"
    assert flags["attention_backend"] == REFERENCE
    assert flags["disable_overlap_schedule"] is False


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_one_banner_line(served: Callable[[str], Served], name: str) -> None:
    banners = [line for line in served(name).log.splitlines() if "tree reader" in line]
    assert len(banners) == 1
    assert "torch_native" in banners[0]


def test_requests_were_retracted(served: Callable[[str], Served]) -> None:
    assert "#retracted_reqs: " in served("page 16, retraction").log


def test_few_shot_program_with_its_own_engine(
    served: Callable[[str], Served], tiny_model: Path, tmp_path: Path
) -> None:
    command = [sys.executable, SCRIPTS / "serve" / "few_shot.py", "--model", tiny_model]
    command += ["--backend", "codec", "--questions", "3", "--shots", "2", "--max-new-tokens", "4"]
    command += ["--json", tmp_path / "out.json", "--plot", tmp_path / "out.png"]
    ended = subprocess.run(
        list(map(str, command)),
        env=cpu_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    (run,) = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert run["output_tokens"] == 3 * 4
    assert run["sharing"]["fallbacks"] == {}
    assert (tmp_path / "out.png").stat().st_size > 0
