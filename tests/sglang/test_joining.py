"""On the real scheduler: who joins or leaves is planned once, and moved KV slots are followed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from sglang_versions import INSTALLED, VERSIONS
from warm_python import run_probe

Report = dict[str, Any]
CASES = {f"{version}-overlap": (version, True) for version in VERSIONS}
CASES[f"{INSTALLED}-normal"] = (INSTALLED, False)


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Report]:
    def serve(sglang: str, backend: str, *, overlap: bool) -> Report:
        arguments = json.dumps({"disable_overlap_schedule": not overlap})
        folder = tmp_path_factory.mktemp("joining")
        checked = {"SGLANG_CODEC_CHECK_SHARING": "1"}
        return run_probe("join_probe", folder, backend, arguments, sglang=sglang, **checked)[0]

    return serve


@pytest.fixture(scope="module")
def expected(serve: Callable[..., Report]) -> dict[str, list[int]]:
    return serve(INSTALLED, "torch_native", overlap=False)["tokens"]


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def report(request: pytest.FixtureRequest, serve: Callable[..., Report]) -> Report:
    version, overlap = request.param
    return serve(version, "codec", overlap=overlap) | {"overlap": overlap}


def changes(rows: list[list[str]]) -> int:
    """Steps whose rows are not those of the step before; the first is one."""
    return 1 + sum(before != now for before, now in itertools.pairwise(rows))


def test_a_request_that_joins_is_planned_once(report: Report) -> None:
    served = report["one by one"]
    joined = {rid for rids in served["rows"] for rid in rids}
    assert len(joined) == 4
    assert changes(served["rows"]) >= 2 * len(joined) - 1
    assert served["plans"] == changes(served["rows"])


def test_slots_that_the_tree_takes_over_are_gathered_again(report: Report) -> None:
    for part in ("one by one", "twins"):
        assert report[part]["wrong"] == []
    assert (report["twins"]["moved"] > 0) == report["overlap"]
    assert report["twins"]["plans"] == changes(report["twins"]["rows"])


def test_tokens_are_those_of_another_backend(
    report: Report, expected: dict[str, list[int]]
) -> None:
    assert report["tokens"] == expected
