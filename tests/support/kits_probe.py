"""SGLang's kits as `run_sglang_kits.py` builds them; run as a program, on one SGLang:

    python kits_probe.py MODEL OUT.json

Runs the unit tests of attention backends on the CPU in one head dimension and layout, and builds
the kits that ask a server without running them. The output: outcomes, and test names by kit.
"""

from __future__ import annotations

import json
import sys
import unittest
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts" / "checks"))

from kits import dense
from kits.catalogue import CPU, KITS
from kits.outcomes import read_outcomes, run_recorded
from kits.served import Target


def main(model: str, output: str) -> None:
    dense.HEAD_DIMS, dense.LAYOUTS = (64,), ("shuffled_pages",)
    file, text = Path(output), Path(__file__)
    lines = file.with_suffix(".jsonl")
    run_recorded(dense.dense_case(CPU), lines)
    target = Target("http://127.0.0.1:9", 1, model, (text,), file.parent)
    names = {kit.name: unittest.defaultTestLoader.getTestCaseNames(kit.make(target))
             for kit in KITS}  # fmt: skip
    outcomes = {o.test: [o.outcome, o.reason] for o in read_outcomes(lines, "")}
    file.write_text(json.dumps({"dense": outcomes, "served": names}))


if __name__ == "__main__":
    main(*sys.argv[1:])
