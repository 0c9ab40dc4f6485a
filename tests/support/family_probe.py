"""Serve a small model of a family with random weights on codec, then on the stock backend alone:

    python family_probe.py MODEL_FOLDER OUTPUT.json FAMILY

FAMILY names a configuration of `tests/data/models`. A third run is without what the family has in
its full layers (sinks, caps), if anything: tokens that do not depend on it would show nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from inproc_scheduler import InprocScheduler

MODELS = Path(__file__).resolve().parents[1] / "data" / "models"
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 16,
    "attn_logit_softcapping": 2.0,
    # SGLang's kernel for it does not run in Triton's interpreter
    "final_logit_softcapping": None,
}
OF_FAMILY = {
    "phi3_mini": {"hidden_size": 96, "num_key_value_heads": 4, "head_dim": 24},
    "mimo_v2_flash": {
        "head_dim": 48,
        "v_head_dim": 32,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 48,
        "swa_v_head_dim": 32,
        "sliding_window_size": 16,
        "add_full_attention_sink_bias": True,
    },
}
SINKS = ("sinks", "sink_bias")  # how their parameters end
ROWS, NEW_TOKENS = 3, 6


def main(model_folder: str, output: str, family: str) -> None:
    from sglang_codec.attention_layers import attention_layers
    from sglang_codec.patches.fallbacks import FALLBACKS

    config = json.loads((MODELS / f"{family}.json").read_text())
    config |= {name: value for name, value in SMALL.items() if name in config}
    config |= OF_FAMILY.get(family, {})
    folder = Path(model_folder)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    engine = InprocScheduler(str(folder))
    model, backend = engine.model_runner.model, engine.decode_backend
    _draw_weights(model)
    ours = _serve(engine, "codec")
    report = {
        "groups": [str(group) for group in backend.layers.groups],
        "delegated": backend.layers.delegated,
        "saved": backend.planner.totals.kv_tokens_saved,
        "fallbacks": FALLBACKS.counts,
        "ours": ours,
    }
    engine.backend.decode_backend = engine.backend.prefill_backend
    report["stock"] = _serve(engine, "stock")
    for name, parameter in model.named_parameters():
        if name.endswith(SINKS):
            parameter.data.fill_(-float("inf"))
    for layer in attention_layers(model):
        layer.logit_cap = 0.0
    report["without"] = _serve(engine, "without")
    Path(output).write_text(json.dumps(report))


def _draw_weights(model: torch.nn.Module) -> None:
    """Wide ones, so that the two best logits are far apart and attention decides about them."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.3 if "attn" in name else 0.1)
        elif name.endswith(SINKS):
            parameter.data.normal_(mean=8.0, std=2.0)
        elif name.endswith("norm.weight"):
            parameter.data.fill_(1.0)


def _serve(engine: InprocScheduler, name: str) -> list[list[int]]:
    """Output ids of rows with a prompt in common, none of which the tree has from another run."""
    trunk = [3 + 7 * i % 400 for i in range(57)]
    rids = [
        engine.submit([*trunk, 70 + row], NEW_TOKENS, rid=f"{name} {row}", extra_key=name)
        for row in range(ROWS)
    ]
    outputs: dict[str, Any] = engine.run()
    return [outputs[rid] for rid in rids]


if __name__ == "__main__":
    main(*sys.argv[1:])
