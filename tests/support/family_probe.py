"""Serve a small model of a family with random weights on codec, then on the stock backend alone:

    python family_probe.py MODEL_FOLDER OUTPUT.json FAMILY [MIN_WINDOW [CONFIG [KV_CACHE_DTYPE]]]

FAMILY names a configuration of `tests/data/models`. A third run, of the first tokens, is without
what the family has (sinks, caps, windows): tokens that do not depend on it would show nothing.
MIN_WINDOW is the shortest window that is served, and CONFIG is JSON to change in the configuration.
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
# where windows are served rows share nothing any more in the end, and places behind the windows,
# where they have a pool of their own, are given away
MORE_TOKENS, SMALL_POOL = 20, {"max_total_tokens": 1024, "swa_full_tokens_ratio": 0.2}


def main(
    model_folder: str,
    output: str,
    family: str,
    min_window: str = "",
    more: str = "{}",
    kv_cache_dtype: str = "auto",
) -> None:
    from sglang_codec import shape_support
    from sglang_codec.attention_layers import attention_layers
    from sglang_codec.patches.fallbacks import FALLBACKS

    if min_window:
        shape_support.MIN_WINDOW = int(min_window)
        SMALL["hidden_size"] = 128  # where heads are what it is divided into
    config = json.loads((MODELS / f"{family}.json").read_text())
    config |= {name: value for name, value in SMALL.items() if name in config}
    config |= OF_FAMILY.get(family, {}) | json.loads(more)
    if config.get("is_hybrid_swa"):
        from sglang.srt.configs import model_config

        # SGLang names the window layers of the families that it knows to have a pool for them
        model_config.get_hybrid_layer_ids = lambda *_: tuple(
            [i for i, kind in enumerate(config["layer_types"]) if kind == wanted]
            for wanted in ("sliding_attention", "full_attention")
        )
    folder = Path(model_folder)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    is_hybrid = config.get("is_hybrid_swa", False)
    of_pool = {"kv_cache_dtype": kv_cache_dtype} | (SMALL_POOL if is_hybrid else {})
    engine = InprocScheduler(str(folder), **of_pool)
    tokens = MORE_TOKENS if min_window else NEW_TOKENS
    model, backend = engine.model_runner.model, engine.decode_backend
    _draw_weights(model)
    ours = _serve(engine, "codec", tokens)
    report = {
        "groups": [str(group) for group in backend.layers.groups],
        "delegated": backend.layers.delegated,
        "pool": type(engine.model_runner.token_to_kv_pool).__name__,
        "saved": backend.planner.totals.kv_tokens_saved,
        "fallbacks": FALLBACKS.counts,
        "ours": ours,
    }
    if "is_hybrid_swa" in config:  # torch_native reads a window pool by slots of the other
        Path(output).write_text(json.dumps(report))
        return
    engine.backend.decode_backend = engine.backend.prefill_backend
    report["stock"] = _serve(engine, "stock", tokens)
    for name, parameter in model.named_parameters():
        if name.endswith(SINKS):
            parameter.data.fill_(-float("inf"))
    for layer in attention_layers(model):
        layer.logit_cap = 0.0
        if min_window:
            layer.sliding_window_size = -1
    report["without"] = _serve(engine, "without", NEW_TOKENS)
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


def _serve(engine: InprocScheduler, name: str, tokens: int) -> list[list[int]]:
    """Output ids of rows with a prompt in common, none of which the tree has from another run."""
    trunk = [3 + 7 * i % 400 for i in range(57)]
    rids = [
        engine.submit([*trunk, 70 + row], tokens, rid=f"{name} {row}", extra_key=name)
        for row in range(ROWS)
    ]
    outputs: dict[str, Any] = engine.run()
    return [outputs[rid] for rid in rids]


if __name__ == "__main__":
    main(*sys.argv[1:])
