"""Planning cannot end serving: whatever a stage raises, the step is served and counted."""

from __future__ import annotations

from typing import Any

import pytest
from warm_python import run_probe

NOT_SHARED = "a batch is planned without sharing"
LESS_SHARED = "a tree too deep for the buffers is read with less sharing"
BY_SLOTS = "sharing found by comparing KV slots (a synchronisation)"
RAISED = "planning failed with ZeroDivisionError"
# stage that raises -> what is counted, and whether the sharing is still found
STAGES = {
    "reading the tree": ({"reading the tree failed with ZeroDivisionError"}, False),
    "comparing batches": ({"comparing batches failed with ZeroDivisionError"}, True),
    "the planner": ({RAISED, NOT_SHARED}, False),
    "no memory": ({"planning failed with MemoryError", NOT_SHARED}, False),
    "the planner's buffers": ({LESS_SHARED}, True),
    "less sharing": ({RAISED, NOT_SHARED}, False),
    "less sharing's buffers": ({NOT_SHARED}, False),
    "the forest": ({RAISED, NOT_SHARED}, False),
    "no sharing": ({RAISED, BY_SLOTS}, True),
    "no sharing's buffers": ({RAISED, BY_SLOTS}, True),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    report, log = run_probe("fault_probe", tmp_path_factory.mktemp("faults"))
    return {"log": log} | report


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_raises_ends_nothing(served: dict[str, Any], stage: str) -> None:
    reasons, shares = STAGES[stage]
    calm, faulty = served["nothing"], served[stage]
    assert faulty["outputs"] == calm["outputs"]
    assert faulty["steps"] == calm["steps"]
    assert set(faulty["fallbacks"]) == reasons
    assert (faulty["saved"] > 0) == shares


def test_a_fault_that_passes_leaves_nothing_behind(served: dict[str, Any]) -> None:
    calm = served["nothing"]
    assert calm["fallbacks"] == {}
    assert calm["saved"] > 0
    assert served["nothing, at the end"] == calm


def test_a_chain_of_prompts_is_served_with_less_sharing(served: dict[str, Any]) -> None:
    """All of its sharing would need more partial results than the buffers hold."""
    chain, parts = served["chain"], served["chain, in parts"]
    assert set(chain["fallbacks"]) == {LESS_SHARED}
    assert chain["saved"] > 0
    assert parts["fallbacks"] == {}
    assert chain["outputs"] == parts["outputs"]


def test_the_first_of_a_kind_is_logged_with_its_cause(served: dict[str, Any]) -> None:
    assert "ZeroDivisionError: injected" in served["log"]
