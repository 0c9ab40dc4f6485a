"""Serve rows that join one by one while their tokens are drafted, and write down what was verified.

python speculation_probe.py MODEL_FOLDER OUTPUT.json BACKEND '{server arguments}'

Beside server arguments: with `delegate` the second layer has what codec does not know, with
`linear` the first one is linear, with `often` one token is said often, `heads` go to what writes
the model, and the trunk of `trunk` tokens is repeated `repeat` times.

A draft model, where there is one, is the target with noise: it is right most of the time. That of a
model with linear layers is a part of it (MTP), and right at times. EAGLE's, EAGLE3's and DFLASH's
draft a token that is said often.
"""

from __future__ import annotations

import json
import sys
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from draft_models import CHANGES, say_one_token_often, write_draft
from fault_probe import faults_of
from inproc_scheduler import InprocScheduler
from join_probe import watch
from linear_ops import draft_from_the_last_token, write_tiny_model
from sharing_probe import source_of_tokens
from speculation_ops import drafting

ROWS, TOKENS = 3, 14
SPREAD, NOISE = 0.1, 0.004


def main(model_folder: str, output: str, backend: str, server_args: str) -> None:
    arguments = json.loads(server_args)
    heads = arguments.pop("heads", {})
    trunk = arguments.pop("trunk", 128), arguments.pop("repeat", 1)
    linear = arguments.pop("linear", False)
    on_a_cpu = arguments.get("device", "cpu") == "cpu"
    model = write_tiny_model(Path(model_folder), linear=linear, on_a_cpu=on_a_cpu, **heads)
    if arguments.get("speculative_algorithm") == "STANDALONE":
        arguments["speculative_draft_model_path"] = model
    often = arguments.pop("often", False)
    if (algorithm := arguments.get("speculative_algorithm")) in CHANGES:
        tokens = arguments["speculative_num_draft_tokens"]
        arguments["speculative_draft_model_path"] = write_draft(Path(model), algorithm, tokens)
    if arguments.pop("delegate", False):
        change_second_layer()
    with drafting(arguments) if on_a_cpu else nullcontext():
        engine = InprocScheduler(model, backend, **arguments)
    give_weights(engine, linear=linear, often=often)
    report = {"nothing": serve(engine, *trunk)}
    is_ngram = arguments.get("speculative_algorithm") == "NGRAM"
    if on_a_cpu and backend == "codec" and is_ngram:
        report["again"] = serve(engine, *trunk)
    if "again" in report and not linear:
        faults = faults_of(engine.decode_backend)
        for name in ("the planner", "reading the tree", "comparing batches"):
            with faults[name][0]():
                report[name] = serve(engine, *trunk)
    Path(output).write_text(json.dumps(report))


def change_second_layer() -> None:
    from sglang.srt.layers.radix_attention import RadixAttention

    make = RadixAttention.__init__

    def changed(layer: Any, *args: Any, **more: Any) -> None:
        make(layer, *args, **more)
        if layer.layer_id == 1:
            layer.unheard_of = 1

    RadixAttention.__init__ = changed


def give_weights(engine: InprocScheduler, *, linear: bool, often: bool = False) -> None:
    """Weights of which prompts decide the tokens; a draft model's are near the target's."""
    target, source = dict(engine.model_runner.model.named_parameters()), torch.Generator()
    worker = getattr(engine.scheduler.draft_worker, "draft_worker", None)
    # DFLASH's is a worker of a model, the others' hold one
    runner = getattr(worker, "draft_runner", getattr(worker, "model_runner", None))
    draft = dict(runner.model.named_parameters()) if runner is not None else {}
    for name, weight in target.items():
        seed = zlib.crc32(name.encode())
        drawn, noise = torch.randn(2, *weight.shape, generator=source.manual_seed(seed))
        drawn = torch.ones_like(drawn) if "norm" in name else SPREAD * drawn
        weight.data.copy_(drawn)
        if name in draft and not (linear or often):
            draft[name].data.copy_(drawn + NOISE * noise)
    if linear:
        draft_from_the_last_token(target, draft)
    if often:
        say_one_token_often(target, draft)


def serve(engine: InprocScheduler, length: int, repeat: int) -> dict[str, Any]:
    """Few-shot rows on a warm trunk; each joins two steps after the one before."""
    if engine.requests:
        engine.requests.clear()
        engine.scheduler.flush_cache()
    some = source_of_tokens(0)
    trunk = some(length) * repeat
    engine.submit(trunk + some(3), 1, rid="warm")
    engine.run()
    waiting = [(f"row {row}", trunk + some(5 + row), TOKENS - row) for row in range(ROWS)]
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
        if (mask := getattr(batch.spec_info, "custom_mask", None)) is not None:
            steps[-1]["mask"] = mask.numel()
        if waiting and len(steps) % 2 == 0:
            rid, prompt, tokens = waiting.pop(0)
            engine.submit(prompt, tokens, rid=rid)

    backend, planner = engine.decode_backend, getattr(engine.decode_backend, "planner", None)
    if planner:
        from sglang_codec.patches.fallbacks import FALLBACKS

        watch(engine, wrong, [])
        planner.totals = type(planner.totals)()
        FALLBACKS.counts.clear()
    engine.run(on_forward)
    report = {"steps": steps, "wrong": wrong}
    report["tokens"] = {
        rid: list(req.output_ids)[: req.sampling_params.max_new_tokens]
        for rid, req in engine.requests.items()
    }
    if planner:
        report |= {"totals": planner.totals.to_dict(), "saved": planner.totals.kv_tokens_saved}
        report["fallbacks"] = dict(FALLBACKS.counts)
        report["groups"] = [str(one.group) for one in backend.groups]
        report["delegated"] = list(backend.layers.delegated)
    return report


if __name__ == "__main__":
    main(*sys.argv[1:])
