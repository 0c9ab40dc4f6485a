"""Serve a model with one delegated layer, without CUDA graphs:

    python delegate_probe.py MODEL_FOLDER OUTPUT.json BACKEND
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from inproc_scheduler import InprocScheduler, write_tiny_llama


def main(model_folder: str, output: str, backend: str) -> None:
    from sglang.srt.layers.radix_attention import RadixAttention

    from sglang_codec.patches.fallbacks import FALLBACKS

    _cap_second_layer(RadixAttention)
    engine = InprocScheduler(write_tiny_llama(Path(model_folder)), backend)
    prefix = list(range(20, 90))
    for row in range(3):
        engine.submit([*prefix, 200 + row, 300], 4 + row)
    report: dict[str, Any] = {"outputs": engine.run()}
    if backend == "codec":
        codec = engine.decode_backend
        report |= {
            "delegated": sorted(codec.layers.delegated),
            "fallbacks": dict(FALLBACKS.counts),
            "saved": codec.planner.totals.kv_tokens_saved,
        }
    Path(output).write_text(json.dumps(report))


def _cap_second_layer(attention: type) -> None:
    build = attention.__init__

    def capped(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        if self.layer_id == 1:
            self.logit_cap = 1.0

    attention.__init__ = capped


if __name__ == "__main__":
    main(*sys.argv[1:])
