"""Thousands of plans of every kind of batch, every index of the planner checked, each plan too."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import fuzz_probe
import pytest
from fuzz_probe import BUFFERS
from random_batches import TREES
from sglang_versions import SUPPORT, run_python

PLANS = 2500
MET = (
    *(f"tree: {tree}" for tree in TREES),
    *(f"buffers: {buffers}" for buffers in BUFFERS),
    *(f"plans: {way}" for way in ("all sharing", "forest", "less sharing", "no sharing", "slots")),
    *(
        f"plans with {what}"
        for what in ("bundles", "shared tiles", "gangs", "merges", "open tails")
    ),
    "refused: all sharing",
    "windows",
    "query rows",
)


def test_every_plan_of_every_kind_of_batch_is_right(tmp_path: Path) -> None:
    # a cache of its own: what is compiled without the checks would be loaded in place of these
    compiled = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = run_python(SUPPORT / "fuzz_probe.py", "--plans", str(PLANS), **compiled)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert not report["faults"], "\n".join(report["faults"])
    counts = report["counts"]
    assert counts["plans"] >= PLANS
    rare = {what: counts.get(what, 0) for what in MET if counts.get(what, 0) < 20}
    assert not rare, f"hardly any of {rare}"
    assert counts["largest batch"] > 900


def test_a_fault_is_reported_with_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    check = fuzz_probe.check_packed

    def strict(*plan: Any) -> dict[str, int]:
        found = check(*plan)
        assert not found["bundles"], "no bundles today"
        return found

    monkeypatch.setattr(fuzz_probe, "check_packed", strict)
    faults = fuzz_probe.fuzz(40, seed=5)["faults"]
    assert faults
    for fault in faults:
        assert re.match(r"seed \d+: .* rows, .* buffers: AssertionError: .*: no bundles", fault)
