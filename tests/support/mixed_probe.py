"""Serve rows that decode while long prompts are prefilled beside them, chunk by chunk.

python mixed_probe.py MODEL_FOLDER OUTPUT.json BACKEND '{"server": {}, "second_layer": {}}'

`second_layer` are attributes of the model's second layer, with `linear` the first one is linear,
`heads` go to what writes the model. All prompts and chunks are `scale` times as long: on a GPU a
short prefix is not worth a task.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from inproc_scheduler import InprocScheduler
from linear_ops import write_tiny_model
from poison import poisoned_allocations
from second_layer_probe import _change_second_layer
from sharing_probe import source_of_tokens
from speculation_probe import give_weights

TRUNK = 48
ROWS = 4
# a chunk holds fewer tokens than this by the rows that decode beside it
CHUNK = 32


def main(model_folder: str, output: str, backend: str, settings: str) -> None:
    from sglang.srt.layers.radix_attention import RadixAttention

    from sglang_codec.patches.fallbacks import FALLBACKS

    given = {"server": {}, "second_layer": {}, "linear": False, "heads": {}, "scale": 1}
    given |= json.loads(settings)
    _change_second_layer(RadixAttention, given["second_layer"])
    scale = given["scale"]
    server = {"enable_mixed_chunk": True, "chunked_prefill_size": scale * CHUNK} | given["server"]
    kind = {"linear": given["linear"], "on_a_cpu": server.get("device", "cpu") == "cpu"}
    model = write_tiny_model(Path(model_folder), **kind, **given["heads"])
    engine = InprocScheduler(model, backend, **server)
    if given["linear"]:
        give_weights(engine, linear=True)
    with ExitStack() as stack:
        if backend == "codec":
            stack.enter_context(poisoned_allocations())
        report = serve(engine, scale)
    report["tokens"] = {rid: list(req.output_ids) for rid, req in engine.requests.items()}
    report["fallbacks"] = dict(FALLBACKS.counts)
    Path(output).write_text(json.dumps(report))


def serve(engine: InprocScheduler, scale: int) -> dict[str, Any]:
    """What each step was and who decoded in it; what the planner counted meanwhile."""
    some = source_of_tokens(0)
    trunk = some(scale * TRUNK)
    engine.submit(trunk + some(3), 1, rid="warm")
    engine.run()
    for row in range(ROWS):
        engine.submit(trunk + some(5 + row), 24, rid=f"row {row}")
    # a prompt of many chunks, one that shares the trunk, one token behind the trunk
    waiting = {4: some(scale * 150), 12: trunk + some(scale * 40), 14: trunk + some(1)}
    steps: list[dict[str, Any]] = []
    prefills = getattr(engine.model_runner, "prefill_cuda_graph_runner", None)

    def on_forward(_: InprocScheduler, forward_batch: Any) -> None:
        described = getattr(forward_batch, "codec_batch", None)
        rids = list(forward_batch.rids)
        steps.append(
            {
                "mode": forward_batch.forward_mode.name,
                "lengths": list(forward_batch.extend_seq_lens_cpu or [1] * len(rids)),
                "graph": bool(prefills and prefills.can_run_graph(forward_batch)),
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
