"""Serve with a dump whose folder goes away while the real scheduler runs, and comes back:

SGLANG_CODEC_DUMP=FOLDER/plan.json python dump_probe.py MODEL_FOLDER OUTPUT.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from inproc_scheduler import InprocScheduler, write_tiny_llama

NEW_TOKENS = 4


def main(model_folder: str, output: str) -> None:
    from sglang_codec import dump
    from sglang_codec.patches.fallbacks import FALLBACKS

    file = Path(os.environ["SGLANG_CODEC_DUMP"])
    engine = InprocScheduler(write_tiny_llama(Path(model_folder)))
    dump._SECONDS_AFTER_A_FAILURE = 0.0

    def serve() -> list[int]:
        rids = [engine.submit([*range(20, 60), 200 + row], NEW_TOKENS) for row in range(2)]
        served = engine.run()
        return [len(served[rid]) for rid in rids]

    def steps() -> int:
        return json.loads(file.read_text())["totals"]["steps"]

    report = {"served": [serve()], "steps": [steps()]}
    away = file.parent.with_name("away")
    file.parent.rename(away)
    report["served"].append(serve())
    report["left"] = sorted(path.name for path in away.iterdir())
    report["failures"] = FALLBACKS.counts[dump.NOT_WRITTEN]
    away.rename(file.parent)
    report["served"].append(serve())
    report["steps"].append(steps())
    report["fallbacks"] = dict(FALLBACKS.counts)
    Path(output).write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
