"""Serve a model whose second layer is unlike its first:

    python second_layer_probe.py MODEL_FOLDER OUTPUT.json BACKEND '{"layer": {}, "server": {}}'

`layer` are attributes of the second layer, `query_heads` the number of its query heads; `server`
goes to SGLang, `heads` to `write_tiny_llama`.
The prefix is repeated `repeat` times: on a GPU a short one is not worth a task of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from inproc_scheduler import InprocScheduler, write_tiny_llama


def main(model_folder: str, output: str, backend: str, settings: str) -> None:
    from sglang.srt.layers.radix_attention import RadixAttention

    from sglang_codec.patches.fallbacks import FALLBACKS

    given = {"layer": {}, "query_heads": None, "heads": {}, "server": {}, "repeat": 1}
    given |= json.loads(settings)
    _change_second_layer(RadixAttention, given["layer"])
    if given["query_heads"]:
        _change_second_heads(given["query_heads"])
    model = write_tiny_llama(Path(model_folder), **given["heads"])
    engine = InprocScheduler(model, backend, **given["server"])
    prefix = list(range(20, 90)) * given["repeat"]
    # the first request puts the prefix into the tree
    engine.submit([*prefix, 200], 2)
    engine.run()
    for row in range(5):
        engine.submit([*prefix, 201 + row, 300], 4 + row)
    report: dict[str, Any] = {"outputs": engine.run()}
    if backend == "codec":
        codec = engine.decode_backend
        report |= {
            "delegated": sorted(codec.layers.delegated),
            "groups": [str(group) for group in codec.layers.groups],
            "fallbacks": dict(FALLBACKS.counts),
            "saved": codec.planner.totals.kv_tokens_saved,
            "ordinary": type(codec.ordinary).__name__,
        }
    Path(output).write_text(json.dumps(report))


def _change_second_layer(attention: type, attributes: dict[str, Any]) -> None:
    build = attention.__init__

    def changed(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        if self.layer_id == 1:
            for name, value in attributes.items():
                setattr(self, name, value)

    attention.__init__ = changed


def _change_second_heads(query_heads: int) -> None:
    from sglang.srt.models.llama import LlamaAttention

    build = LlamaAttention.__init__

    def changed(self: Any, *args: Any, layer_id: int = 0, **kwargs: Any) -> None:
        if layer_id == 1:
            kwargs["num_heads"] = query_heads
        build(self, *args, layer_id=layer_id, **kwargs)

    LlamaAttention.__init__ = changed


if __name__ == "__main__":
    main(*sys.argv[1:])
