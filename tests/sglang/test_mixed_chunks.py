"""On the real scheduler with mixed chunks: rows that decode beside a prompt are codec's."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from second_layer import ON_A_GPU, are_alike, gpu_environment
from sglang_versions import INSTALLED, SUPPORT, VERSIONS, run_python
from warm_python import run_probe

Report = dict[str, Any]
# the second layer goes to the stock backend, as one with an attribute that codec does not know
DELEGATED = {"server": {"disable_overlap_schedule": False}, "second_layer": {"unheard_of": 1}}
PAGED = {"server": {"page_size": 16}}
# SGLang, settings of the probe, prefill backend
CASES = {f"{version}-delegated": (version, DELEGATED, "torch_native") for version in VERSIONS}
CASES[f"{INSTALLED}-paged"] = (INSTALLED, PAGED, "triton")
# the first layer is linear, and SGLang's
LINEAR = {"linear": True}
CASES[f"{INSTALLED}-linear"] = (INSTALLED, LINEAR, "torch_native")


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Report]:
    def serve(sglang: str, backend: str, settings: dict[str, Any], prefill: str) -> Report:
        folder = tmp_path_factory.mktemp("mixed")
        variables = {"SGLANG_CODEC_CHECK_SHARING": "1", "SGLANG_CODEC_PREFILL_BACKEND": prefill}
        given = (backend, json.dumps(settings))
        return run_probe("mixed_probe", folder, *given, sglang=sglang, **variables)[0]

    return serve


@pytest.fixture(scope="module")
def expected(serve: Callable[..., Report]) -> Callable[..., dict[str, list[int]]]:
    @functools.cache
    def tokens(*, linear: bool) -> dict[str, list[int]]:
        return serve(INSTALLED, "torch_native", LINEAR if linear else {}, "")["tokens"]

    return tokens


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def report(case: str, serve: Callable[..., Report]) -> Report:
    version, settings, prefill = CASES[case]
    return serve(version, "codec", settings, prefill)


def test_tokens_are_those_of_another_backend(
    case: str, report: Report, expected: Callable[..., dict[str, list[int]]]
) -> None:
    assert report["tokens"] == expected(linear="linear" in case)
    assert report["fallbacks"] == {}


def test_every_row_that_decodes_is_served(case: str, report: Report) -> None:
    steps = report["steps"]
    mixed = [step for step in steps if step["mode"] == "MIXED"]
    assert len(mixed) >= 8
    # also beside a chunk of one token, but where states of the trunk's last token are not kept
    assert "linear" in case or any(step["lengths"][0] == 1 for step in mixed)
    assert all(step["decoding"] for step in mixed)
    counted = report["counted"]
    assert counted["steps"] == sum(bool(step["decoding"]) for step in steps)
    assert 0 < counted["kv_tokens_read"] < counted["kv_tokens_stock"]


def test_a_plan_lives_as_long_as_the_rows_that_decode(report: Report) -> None:
    rows = [step["decoding"] for step in report["steps"] if step["decoding"]]
    changes = 1 + sum(before != now for before, now in itertools.pairwise(rows))
    assert report["counted"]["plans"] == changes
    assert changes < len(rows) / 2


def _on_a_gpu(folder: Path, backend: str, settings: dict[str, Any], stock: str) -> Report:
    folder.mkdir()
    files = [folder / "model", folder / "report.json"]
    probe = [SUPPORT / "mixed_probe.py", *files, backend, json.dumps(settings)]
    done = run_python(*probe, **gpu_environment(stock))
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(files[1].read_text())


@pytest.mark.cuda
@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
@pytest.mark.parametrize("case", ["fa3", "flashinfer", "triton", "fa3-linear"])
def test_on_a_gpu(case: str, graphs: bool, tmp_path: Path) -> None:
    """Where SGLang replays prefills, it replays MIXED ones too, and calls attention between."""
    stock = case.removesuffix("-linear")
    server = {"disable_overlap_schedule": False, "disable_cuda_graph": not graphs}
    if graphs:
        server |= {"cuda_graph_max_bs_decode": 8, "cuda_graph_bs_prefill": [128, 256, 384]}
    settings = {
        "server": ON_A_GPU | server,
        "heads": {"head_dim": 128, "heads": 8, "kv_heads": 2},
        "scale": 12,
    }
    if case != stock:
        settings |= LINEAR
        settings["heads"] |= {"head_dim": 256, "linear_heads": (4, 8)}  # 128 in the linear layers
        settings["server"]["linear_attn_prefill_backend"] = "triton"  # no FlashInfer to compile
    ours, theirs = (
        _on_a_gpu(tmp_path / backend, backend, settings, stock) for backend in ("codec", stock)
    )
    assert ours["fallbacks"] == {}
    assert are_alike(ours["tokens"], theirs["tokens"])
    for one in (ours, theirs):
        mixed = [step for step in one["steps"] if step["mode"] == "MIXED"]
        # SGLang decides whether prefills of linear layers are replayed
        assert any(step["graph"] for step in mixed) == graphs or case != stock
    test_every_row_that_decodes_is_served(case, ours)
