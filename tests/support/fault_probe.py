"""Serve the same requests again and again while one stage of planning or reporting raises:

    python fault_probe.py MODEL_FOLDER OUTPUT.json
"""

from __future__ import annotations

import functools
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from inproc_scheduler import InprocScheduler, write_tiny_llama

CHAIN, CHAIN_STEP = 40, 48


def main(model_folder: str, output: str) -> None:
    engine = InprocScheduler(
        write_tiny_llama(Path(model_folder)), max_running_requests=CHAIN, max_total_tokens=4096
    )
    backend = engine.decode_backend
    report = {"nothing": _serve(engine, [])}
    for name, faults in faults_of(backend).items():
        report[name] = _serve(engine, faults)
    report["nothing, at the end"] = _serve(engine, [])
    report["chain"] = _serve(engine, [], _submit_chain)
    report["chain, in parts"] = _serve(engine, [], functools.partial(_submit_chain, together=5))
    Path(output).write_text(json.dumps(report))


Fault = Callable[[], Any]


def faults_of(backend: Any) -> dict[str, list[Fault]]:
    """Name of the stage -> what makes it raise."""
    from sglang_codec import batch_planner, plan_maker
    from sglang_codec.patches.codec_batch import CodecBatch
    from sglang_codec.planning.forest import PrefixForest
    from sglang_codec.planning.plan import PlanCapacityError

    maker = backend.planner.makers[0]
    lacking = PlanCapacityError("injected: too small")
    planner = _raising(maker, "_pack_paths")
    too_small = _raising(maker, "_pack_paths", lacking)
    frugal = _raising(plan_maker, "frugal_plan")
    plain = _raising(plan_maker, "plain_plan")
    plain_too_small = _raising(plan_maker, "plain_plan", lacking)
    return {
        "reading the tree": [_raising(CodecBatch, "read")],
        "comparing batches": [_raising(batch_planner._Live, "is_next_step")],
        "the planner": [planner],
        "no memory": [_raising(maker, "_pack_paths", MemoryError("injected"))],
        "the planner's buffers": [too_small],
        "less sharing": [too_small, frugal],
        "less sharing's buffers": [too_small, _raising(plan_maker, "frugal_plan", lacking)],
        "the forest": [planner, _raising(PrefixForest, "from_radix_paths")],
        "no sharing": [planner, plain],
        "no sharing's buffers": [planner, plain_too_small],
    }


def _raising(owner: Any, name: str, error: Exception | None = None) -> Fault:
    error = error or ZeroDivisionError("injected")
    return lambda: mock.patch.object(owner, name, mock.Mock(side_effect=error))


def _submit_few_shot(engine: InprocScheduler) -> None:
    prefix = list(range(20, 90))
    # the first request puts the prefix into the tree
    engine.submit([*prefix, 200], 2)
    engine.run()
    for row in range(3):
        engine.submit([*prefix, 201 + row, 300], 4 + row)


def _submit_chain(engine: InprocScheduler, together: int = CHAIN) -> None:
    """Each prompt continues the one before: a tree as deep as the batch is wide."""
    tokens = random.Random(0).choices(range(3, 500), k=CHAIN * CHAIN_STEP)
    engine.submit(tokens, 1)
    engine.run()
    for row in range(CHAIN):
        if row % together == 0:
            engine.run()
        engine.submit(tokens[: (row + 1) * CHAIN_STEP], 2)


def _serve(
    engine: InprocScheduler,
    faults: list[Fault],
    submit: Callable[[InprocScheduler], None] = _submit_few_shot,
) -> dict[str, Any]:
    from sglang_codec.patches.fallbacks import FALLBACKS

    engine.requests.clear()
    engine.scheduler.flush_cache()
    FALLBACKS.counts.clear()
    planner = engine.decode_backend.planner
    saved, steps = planner.totals.kv_tokens_saved, planner.totals.steps
    submit(engine)
    patches = [fault() for fault in faults]
    for patch in patches:
        patch.start()
    try:
        outputs = engine.run()
    finally:
        for patch in patches:
            patch.stop()
    return {
        "outputs": list(outputs.values()),
        "fallbacks": dict(FALLBACKS.counts),
        "saved": planner.totals.kv_tokens_saved - saved,
        "steps": planner.totals.steps - steps,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
