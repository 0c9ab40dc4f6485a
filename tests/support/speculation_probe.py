"""Serve rows that join one by one while their tokens are drafted, and write down what was verified.

python speculation_probe.py MODEL_FOLDER OUTPUT.json BACKEND '{server arguments}'

A draft model, where there is one, is a layer shorter than the target: it is right now and then.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from inproc_scheduler import InprocScheduler, write_tiny_llama
from join_probe import watch
from sharing_probe import source_of_tokens
from speculation_ops import NgramStandIn, prepare

TRUNK, ROWS = 160, 4


def main(model_folder: str, output: str, backend: str, server_args: str) -> None:
    prepare()
    arguments = json.loads(server_args)
    if arguments.get("speculative_algorithm") == "STANDALONE":
        draft = write_tiny_llama(Path(model_folder) / "draft", layers=1)
        arguments["speculative_draft_model_path"] = draft
    overlaps = not arguments.get("disable_overlap_schedule", True)
    with NgramStandIn.in_place(), _overlap_on_a_cpu(overlaps):
        engine = InprocScheduler(write_tiny_llama(Path(model_folder)), backend, **arguments)
    Path(output).write_text(json.dumps(serve(engine)))


def serve(engine: InprocScheduler) -> dict[str, Any]:
    """Few-shot rows on a warm trunk; each joins two steps after the one before."""
    some = source_of_tokens(0)
    trunk = some(TRUNK)
    engine.submit(trunk + some(3), 1, rid="warm")
    engine.run()
    waiting = [(f"row {row}", trunk + some(5 + row), 40 - row) for row in range(ROWS)]
    engine.submit(*waiting[0][1:], rid=waiting.pop(0)[0])
    steps: list[dict[str, Any]] = []
    wrong: list[list[int]] = []

    def on_forward(_: InprocScheduler, batch: Any) -> None:
        mode = batch.forward_mode
        if not (mode.is_target_verify() or mode.is_decode()):
            return
        steps.append({"verifies": mode.is_target_verify(), "rows": list(batch.rids)})
        steps[-1]["lengths"] = batch.seq_lens.tolist()
        steps[-1]["host knows"] = batch.seq_lens_cpu is not None
        if waiting and len(steps) % 2 == 0:
            rid, prompt, tokens = waiting.pop(0)
            engine.submit(prompt, tokens, rid=rid)

    planner = getattr(engine.decode_backend, "planner", None)
    if planner:
        watch(engine, wrong, [])
    engine.run(on_forward)
    report = {"steps": steps, "wrong": wrong}
    report["tokens"] = {
        rid: list(req.output_ids)[: req.sampling_params.max_new_tokens]
        for rid, req in engine.requests.items()
    }
    if planner:
        from sglang_codec.patches.fallbacks import FALLBACKS

        report |= {"totals": planner.totals.to_dict(), "saved": planner.totals.kv_tokens_saved}
        report["fallbacks"] = dict(FALLBACKS.counts)
        report["groups"] = [str(one.group) for one in engine.decode_backend.groups]
    return report


def _overlap_on_a_cpu(overlaps: bool) -> Any:
    """SGLang speculates on a CPU without overlap only; what needs a device is not asked for here."""
    from contextlib import nullcontext
    from unittest import mock

    from sglang.srt.arg_groups import speculative_hook

    name = "_disable_overlap_schedule_for_cpu"
    if not overlaps or not hasattr(speculative_hook, name):
        return nullcontext()
    return mock.patch.object(speculative_hook, name)


if __name__ == "__main__":
    main(*sys.argv[1:])
