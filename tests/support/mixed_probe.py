"""Serve rows that decode while long prompts are prefilled beside them, chunk by chunk.

python mixed_probe.py MODEL_FOLDER OUTPUT.json BACKEND '{"server": {}, "second_layer": {}}'

Every batch goes by the scheduler's own MIXED mode. `second_layer` are attributes of the model's
second layer.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from inproc_scheduler import InprocScheduler, write_tiny_llama
from poison import poisoned_allocations
from second_layer_probe import _change_second_layer
from sharing_probe import source_of_tokens

TRUNK = 48
ROWS = 4
# a chunk holds fewer tokens than this by the rows that decode beside it
CHUNK = 32


def main(model_folder: str, output: str, backend: str, settings: str) -> None:
    from sglang.srt.layers.radix_attention import RadixAttention

    from sglang_codec.patches.fallbacks import FALLBACKS

    given = {"server": {}, "second_layer": {}} | json.loads(settings)
    _change_second_layer(RadixAttention, given["second_layer"])
    server = {"enable_mixed_chunk": True, "chunked_prefill_size": CHUNK} | given["server"]
    engine = InprocScheduler(write_tiny_llama(Path(model_folder)), backend, **server)
    with ExitStack() as stack:
        if backend == "codec":
            stack.enter_context(poisoned_allocations())
        report = serve(engine)
    report["tokens"] = {rid: list(req.output_ids) for rid, req in engine.requests.items()}
    report["fallbacks"] = dict(FALLBACKS.counts)
    Path(output).write_text(json.dumps(report))


def serve(engine: InprocScheduler) -> dict[str, Any]:
    """What each step was, who decoded in it, and what the planner had counted after it."""
    some = source_of_tokens(0)
    trunk = some(TRUNK)
    engine.submit(trunk + some(3), 1, rid="warm")
    engine.run()
    for row in range(ROWS):
        engine.submit(trunk + some(5 + row), 24, rid=f"row {row}")
    # a prompt of many chunks, one that shares the trunk, and one whose last chunk is one token
    waiting = {4: some(150), 12: trunk + some(40), 14: some(2)}
    steps: list[dict[str, Any]] = []
    planner = getattr(engine.decode_backend, "planner", None)

    def on_forward(_: InprocScheduler, forward_batch: Any) -> None:
        if steps and planner:
            steps[-1] |= {"served": planner.totals.steps, "plans": planner.totals.plans}
        lengths = forward_batch.extend_seq_lens_cpu or [1] * forward_batch.batch_size
        rows = len(forward_batch.rids) - getattr(
            getattr(forward_batch, "codec_batch", None), "rows", 0
        )
        steps.append(
            {
                "mode": forward_batch.forward_mode.name,
                "rids": list(forward_batch.rids),
                "lengths": list(lengths),
                "decoding": list(forward_batch.rids)[rows:],
            }
        )
        if (prompt := waiting.pop(len(steps), None)) is not None:
            engine.submit(prompt, 3, rid=f"prompt of {len(prompt)}")

    engine.run(on_forward)
    if planner:
        steps[-1] |= {"served": planner.totals.steps, "plans": planner.totals.plans}
    totals = planner.totals if planner else None
    return {"steps": steps, "saved": totals.kv_tokens_saved if totals else 0}


if __name__ == "__main__":
    main(*sys.argv[1:])
