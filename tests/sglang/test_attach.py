"""On the real scheduler: the tree's paths reach the backend, are sound, and are complete."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from sglang_versions import INSTALLED, OVERLAYS
from step_record import pairs, path, physically_common, proven_common

Report = dict[str, Any]

PAGED_OVERLAP = json.dumps({"page_size": 16, "disable_overlap_schedule": False})
NAMED_PREFILL = json.dumps(
    {
        "attention_backend": None,
        "decode_attention_backend": "codec",
        "prefill_attention_backend": "torch_native",
    }
)
CASES = {
    f"{INSTALLED}-named-prefill": (INSTALLED, NAMED_PREFILL),
    **{f"{version}-paged-overlap": (version, PAGED_OVERLAP) for version in (INSTALLED, *OVERLAYS)},
}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def report(request: pytest.FixtureRequest, attach_report: Callable[..., Report]) -> Report:
    return attach_report(*request.param)


def test_name_is_registered_once(report: Report) -> None:
    assert report["choices"] == 1


def test_hooks_are_applied_once(report: Report) -> None:
    assert list(report["hooks"].values()) == [1, 1, 1, 1]


def test_settings_are_read_from_the_resolved_configuration(report: Report) -> None:
    found = report["settings"]
    # an argument that this version does not have is nowhere
    assert {name: found[name] for name in report["arguments"]} == dict.fromkeys(
        report["arguments"], "namespace"
    )
    assert set(found.values()) <= {"namespace", "nowhere"}
    assert len(report["arguments"]) >= 9


def test_a_server_without_graphs_says_so(report: Report) -> None:
    assert report["graphs"].startswith("all decode steps are eager")


def test_the_first_rank_writes_the_dump_that_was_asked_for(report: Report) -> None:
    assert report["dump"] == "plan.json"


def test_backend_is_a_hybrid_around_codec(report: Report) -> None:
    assert report["backend"] == "HybridAttnBackend"
    assert report["decode_backend"] == "CodecDecodeBackend"


def test_sglang_chose_the_prefill_backend(report: Report) -> None:
    assert report["names"] == ["torch_native", "codec"]


def test_a_step_was_seen_before_serving_and_not_counted(report: Report) -> None:
    assert report["looked"]
    assert report["totals_at_start"] == 0


def test_a_step_shows_what_layers_pass_and_who_decodes_them(report: Report) -> None:
    assert report["seen"] == {"reached": [0, 1], "reasons": {"1": "passes score_mod"}}


def test_tree_is_read_not_skipped(report: Report) -> None:
    readers = {step["reader"] for step in report["steps"]}
    assert readers == {report["reader"]}
    assert report["reader"] in ("parent walk", "collect_path_info")
    assert not report["fallbacks"]


def test_members_of_a_path_node_hold_the_same_slots(report: Report) -> None:
    for step in report["steps"]:
        for first, second in pairs(step):
            common = proven_common(step, first, second)
            assert step["slots"][first][:common] == step["slots"][second][:common]


def test_what_is_shared_is_proven_from_the_second_step_on(report: Report) -> None:
    compared = 0
    for before, step in itertools.pairwise(report["steps"]):
        if not set(step["rids"]) <= set(before["rids"]):
            continue  # with overlap the first step after a join still sees the copies
        for first, second in pairs(step):
            shared = physically_common(step, first, second)
            assert proven_common(step, first, second) == shared
            compared += shared
    assert compared > 0


def test_an_equal_signature_only_lengthens_the_rows(report: Report) -> None:
    unchanged = 0
    for before, step in itertools.pairwise(report["steps"]):
        if not step["unchanged"]:
            continue
        unchanged += 1
        assert step["rids"] == before["rids"]
        assert [slots[:-1] for slots in step["slots"]] == before["slots"]
        for first, second in pairs(step):
            assert proven_common(step, first, second) == proven_common(before, first, second)
    assert unchanged > 0


def test_depth_and_late_join(report: Report) -> None:
    joined = [step for step in report["steps"] if report["late_join"] in step["rids"]]
    last = joined[-1]
    late, old = last["rids"].index(report["late_join"]), last["rids"].index("r3")
    # the late request shares 64 of the trunk's 96 tokens: it split a node under a running request
    assert proven_common(last, late, old) == 64
    assert last["end"][path(last, old)[0]] == 64


def test_other_extra_key_shares_nothing(report: Report) -> None:
    for step in report["steps"]:
        if "namespaced" in step["rids"]:
            row = step["rids"].index("namespaced")
            others = [other for other in range(len(step["rids"])) if other != row]
            assert not any(proven_common(step, row, other) for other in others)


def test_paths_are_shorter_than_the_rows(report: Report) -> None:
    for step in report["steps"]:
        for row, leaf in enumerate(step["leaf"]):
            if leaf >= 0:
                assert step["end"][leaf] < len(step["slots"][row])


def test_evicted_nodes_prove_nothing(report: Report) -> None:
    assert report["stale_leaves"]
    assert set(report["stale_leaves"]) == {-1}


@pytest.mark.parametrize("version", OVERLAYS)
def test_versions_decode_the_same_tokens(
    version: str, attach_report: Callable[..., Report]
) -> None:
    ours = attach_report(INSTALLED, PAGED_OVERLAP)["outputs"]
    assert attach_report(version, PAGED_OVERLAP)["outputs"] == ours
