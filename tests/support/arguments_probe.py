"""Serve a model whose second layer passes a score_mod in decode, and write down who decoded it.

Run as a program, since a process serves one scheduler: python arguments_probe.py MODEL OUTPUT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from inproc_scheduler import InprocScheduler, write_tiny_llama

PASSING = 1


def main(model_folder: str, output: str) -> None:
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
    from sglang.srt.layers.radix_attention import RadixAttention

    calls: list[tuple[int, bool]] = []

    class Native(TorchNativeAttnBackend):
        """A stock backend that takes a score_mod, and knows that this one changes nothing."""

        def get_cuda_graph_seq_len_fill_value(self) -> int:
            return 1

        def forward_decode(self, *args: Any, score_mod: Any = None, **more: Any) -> Any:
            layer = more["layer"] if "layer" in more else args[3]
            calls.append((layer.layer_id, score_mod is not None))
            return super().forward_decode(*args, **more)

    ATTENTION_BACKENDS["torch_native"] = Native
    forward = RadixAttention.forward

    def passing(self: Any, q: Any, k: Any, v: Any, batch: Any, *args: Any, **more: Any) -> Any:
        if self.layer_id == PASSING and batch.forward_mode.is_decode():
            more["score_mod"] = object()
        return forward(self, q, k, v, batch, *args, **more)

    RadixAttention.forward = passing
    engine = InprocScheduler(write_tiny_llama(Path(model_folder)))
    at_start = len(calls)
    backend, trunk = engine.decode_backend, list(range(3, 40))
    for row in range(3):
        engine.submit([*trunk, 50 + row], 5)
    shared = engine.run()
    report = {
        "delegated": backend.layers.delegated,
        "calls_at_start": at_start,
        "calls": sorted(set(calls)),
        "outputs": list(shared.values()),
        "refusals": _refusals(engine),
    }
    engine.model_runner.attn_backend.decode_backend = Native(engine.model_runner)
    for row in range(3):
        engine.submit([*trunk, 50 + row], 5, rid=f"stock {row}")
    report["stock"] = [ids for rid, ids in engine.run().items() if rid.startswith("stock")]
    Path(output).write_text(json.dumps(report))


def _refusals(engine: InprocScheduler) -> list[str]:
    """What start-up says if every layer passes one, and if codec is routed around."""
    from sglang_codec.refusals import UnsupportedConfiguration
    from sglang_codec.step_probe import SeenStep, see_a_step, settle

    runner, backend, said = engine.model_runner, engine.decode_backend, []
    hybrid = runner.attn_backend
    hybrid.decode_backend = hybrid.prefill_backend
    unreached = see_a_step(runner.eager_runner, backend)
    hybrid.decode_backend = backend
    everywhere = SeenStep({0, 1}, dict.fromkeys((0, 1), "passes score_mod"))
    for seen in (unreached, everywhere):
        try:
            settle(seen, backend, runner)
        except UnsupportedConfiguration as refusal:
            said.append(str(refusal))
    return said


if __name__ == "__main__":
    main(*sys.argv[1:])
