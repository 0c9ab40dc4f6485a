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
    """What each step was and who decoded in it; what the planner counted meanwhile."""
    some = source_of_tokens(0)
    trunk = some(TRUNK)
    engine.submit(trunk + some(3), 1, rid="warm")
    engine.run()
    for row in range(ROWS):
        engine.submit(trunk + some(5 + row), 24, rid=f"row {row}")
    # a prompt of many chunks, one that shares the trunk, one token behind the trunk
    waiting = {4: some(150), 12: trunk + some(40), 14: trunk + some(1)}
    steps: list[dict[str, Any]] = []

    def on_forward(_: InprocScheduler, forward_batch: Any) -> None:
        described = getattr(forward_batch, "codec_batch", None)
        rids = list(forward_batch.rids)
        steps.append(
            {
                "mode": forward_batch.forward_mode.name,
                "lengths": list(forward_batch.extend_seq_lens_cpu or [1] * len(rids)),
                "decoding": rids[len(rids) - described.rows :] if described else [],
            }
        )
        if (prompt := waiting.pop(len(steps), None)) is not None:
            engine.submit(prompt, 3, rid=f"prompt of {len(prompt)}")

    planner = getattr(engine.decode_backend, "planner", None)
    before = planner.totals.to_dict() if planner else {}
    engine.run(on_forward)
    counted = {name: planner.totals.to_dict()[name] - n for name, n in before.items()}
    return {"steps": steps, "counted": counted}


if __name__ == "__main__":
    main(*sys.argv[1:])
