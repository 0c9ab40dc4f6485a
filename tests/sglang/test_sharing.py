"""On the real scheduler: beams and streaming sessions share what they alias, and nothing is kept.

`SGLANG_CODEC_CHECK_SHARING` is on, so a run with rows that do not hold the same slots ends early.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sglang_versions import INSTALLED, OVERLAYS, SUPPORT
from step_record import Step, pairs, proven_common
from warm_python import run_warm

Report = dict[str, Any]

TRUNK = 48
ON_TRUNK = {"short", "plain", "long"}
SMALL_POOL = 1536
FULL = {"enable_streaming_session": True, "max_total_tokens": SMALL_POOL}
NO_TREE = {"disable_radix_cache": True, "max_total_tokens": SMALL_POOL}
OVERLAP = {"disable_overlap_schedule": False}
NEWEST, OLDEST = "0.5.23", "0.5.17"

Run = tuple[str, str, dict[str, Any]]
REFERENCE: Run = (INSTALLED, "torch_native", FULL)
INJECTED: Run = (INSTALLED, "codec", FULL | OVERLAP | {"inject": True})
CASES: dict[str, Run] = {
    f"{INSTALLED}-overlap": INJECTED,
    f"{INSTALLED}-no-radix": (INSTALLED, "codec", NO_TREE),
    f"{NEWEST}-normal": (NEWEST, "codec", FULL),
    f"{NEWEST}-no-radix-overlap": (NEWEST, "codec", NO_TREE | OVERLAP),
    f"{OLDEST}-paged-overlap": (OLDEST, "codec", FULL | OVERLAP | {"page_size": 16}),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Run], Report]:
    """What `support/sharing_probe.py` saw; each run is served once."""

    @functools.cache
    def serve(sglang: str, backend: str, server_args: str) -> Report | str:
        folder = tmp_path_factory.mktemp("sharing")
        output = folder / "report.json"
        done = run_warm(
            SUPPORT / "sharing_probe.py",
            str(folder / "model"),
            str(output),
            backend,
            server_args,
            sglang=sglang,
            SGLANG_CODEC_CHECK_SHARING="1",
        )
        return json.loads(output.read_text()) if done.returncode == 0 else done.stderr[-4000:]

    def report(run: Run) -> Report:
        sglang, backend, server_args = run
        if sglang not in (INSTALLED, *OVERLAYS):
            pytest.skip(f"SGLang {sglang} is not here")
        result = serve(sglang, backend, json.dumps(server_args))
        assert isinstance(result, dict), result
        return result

    return report


@pytest.fixture(params=CASES.values(), ids=CASES)
def run(request: pytest.FixtureRequest) -> Run:
    return request.param


@pytest.fixture
def report(run: Run, served: Callable[[Run], Report]) -> Report:
    return served(run)


def owners(step: Step) -> list[str]:
    """The request to which each row belongs, beam members to their leader's."""
    owners = step["rids"] + [""] * (len(step["leaf"]) - len(step["rids"]))
    for leader, first, last, _ in step["beams"]:
        owners[first:last] = [owners[leader]] * (last - first)
    return owners


def with_beams(report: Report) -> Iterator[tuple[Step, list[str]]]:
    if "beams" not in report:
        pytest.skip("no beam search here")
    return ((step, owners(step)) for step in report["beams"])


def test_rows_of_a_beam_group_share_exactly_their_prompt(report: Report) -> None:
    groups = set()
    for step, rows in with_beams(report):
        for first, second in pairs(step):
            if rows[first] == rows[second]:
                groups.add(rows[first])
                assert proven_common(step, first, second) == report["prompts"][rows[first]]
    assert groups == {"short", "long", "wide"}


def test_beam_groups_read_the_path_of_their_leader(run: Run, report: Report) -> None:
    expected = 0 if "disable_radix_cache" in run[2] else TRUNK
    compared = 0
    for step, rows in with_beams(report):
        for first, second in pairs(step):
            if rows[first] != rows[second]:
                on_trunk = {rows[first], rows[second]} <= ON_TRUNK
                assert proven_common(step, first, second) == (expected if on_trunk else 0)
                compared += on_trunk
    assert compared


def test_every_member_row_belongs_to_a_group_and_no_step_to_the_last_ones_plan(
    report: Report,
) -> None:
    for step, rows in with_beams(report):
        assert "" not in rows
        assert not (step["beams"] and step["unchanged"])


def test_a_group_wider_than_the_pool_needs_no_other_way(report: Report) -> None:
    """Its rows hold more tokens than the pool has slots, so without sharing they fit no plan."""
    wide = [step for step, rows in with_beams(report) if "wide" in rows and step["beams"]]
    assert all(sum(map(len, step["slots"])) > 2 * SMALL_POOL for step in wide)
    assert wide


def test_turns_of_a_session_keep_their_prefix(report: Report) -> None:
    if "turns" not in report:
        pytest.skip("no sessions here")
    assert len(report["turns"]) == 3
    for number, turn in enumerate(report["turns"]):
        # the first step may be launched before the prefill's slots are the tree's
        for step in turn if number else turn[1:]:
            assert len(step["rids"]) == 3
            assert {proven_common(step, *pair) for pair in pairs(step)} == {TRUNK}
        assert any(step["unchanged"] for step in turn)


def test_nothing_is_guessed_or_given_up(report: Report) -> None:
    assert report["fallbacks"] == {}


def test_tokens_are_those_of_another_backend(
    report: Report, served: Callable[[Run], Report]
) -> None:
    expected = served(REFERENCE)["tokens"]
    assert report["tokens"] == {rid: expected[rid] for rid in report["tokens"]}


def test_no_request_or_tree_node_outlives_a_flush(report: Report) -> None:
    assert report["alive"] == []


STAGES = ("batch", "attacher", "reader", "row states", "beams")
READS = ("tree", "fewer chains", "more chains")


@pytest.mark.parametrize("stage", STAGES + READS)
def test_a_stage_that_raises_ends_no_step(stage: str, served: Callable[[Run], Report]) -> None:
    report = served(INJECTED)["injected"]
    assert report[stage]["tokens"] == report["clean"]["tokens"]
    counts = report[stage]["counts"]
    what = "reading the tree" if stage in READS else "describing the batch"
    assert [reason.split(" failed with ")[0] for reason in counts][0] == what
    assert next(iter(counts.values())) > 1
    assert report[stage]["logged"] == list(counts)
