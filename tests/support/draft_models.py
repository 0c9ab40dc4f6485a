"""Small drafts of SGLang's own classes (EAGLE, EAGLE3, DFLASH), which always draft one token.

The target is made to say that token often, so some drafts are accepted and others are not. What a
draft reads of the target (hidden states, of one or several layers) runs through its own layers,
and does not decide.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

OFTEN, HOW_MUCH = 0, 6.0  # the token, and by what its logits are larger than others
MASK = 3  # what DFLASH asks for where a token is to be drafted
LAYERS = [0]  # of the target, whose hidden states are read
HOT = 256  # tokens that EAGLE3 can draft, every other one of the target's
CHANGES: dict[str, dict[str, Any]] = {
    "EAGLE": {"architectures": ["LlamaForCausalLMEagle"]},
    "EAGLE3": {
        "architectures": ["LlamaForCausalLMEagle3"],
        "draft_vocab_size": HOT,
        "bias": True,
        "num_aux_hidden_states": len(LAYERS),
        "eagle_config": {
            "use_aux_hidden_state": True,
            "eagle_aux_hidden_state_layer_ids": LAYERS,
        },
    },
    "DFLASH": {
        "architectures": ["DFlashDraftModel"],
        "num_target_layers": 2,
        "dflash_config": {"mask_token_id": MASK, "target_layer_ids": LAYERS},
    },
}
Parameters = dict[str, torch.nn.Parameter]


def write_draft(target: Path, algorithm: str, draft_tokens: int) -> str:
    """A folder with a draft's configuration, for the target's in `target`."""
    if algorithm == "EAGLE3":
        _map_hot_tokens()
    config = json.loads((target / "config.json").read_text()) | {"num_hidden_layers": 1}
    folder = target.with_name(f"{target.name}-draft")
    folder.mkdir(exist_ok=True)
    config |= CHANGES[algorithm] | {"block_size": draft_tokens}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def say_one_token_often(target: Parameters, draft: Parameters) -> None:
    """Scale that token's logits, and let the draft's hidden states always be those of it."""
    head, embeddings = target["lm_head.weight"].data, target["model.embed_tokens.weight"].data
    head[OFTEN] *= HOW_MUCH
    embeddings[MASK] = head[OFTEN]
    shared = {target[name].data_ptr() for name in ("lm_head.weight", "model.embed_tokens.weight")}
    for name, weight in draft.items():
        if weight.data_ptr() in shared:
            continue
        if name.endswith("fc.bias"):
            weight.data.copy_(head[OFTEN])
        elif name.endswith(("o_proj.weight", "down_proj.weight", "fc.weight")):
            weight.data.zero_()
        elif name == "lm_head.weight":
            weight.data.copy_(head[::2][: len(weight)])
        elif "norm" in name:
            weight.data.fill_(1)


def _map_hot_tokens() -> None:
    """What a checkpoint's `d2t` is to EAGLE3, where weights are made up and none is loaded."""
    from sglang.srt.models.llama_eagle3 import LlamaForCausalLMEagle3 as Draft

    make = Draft.__init__

    def made(model: Any, *args: Any, **more: Any) -> None:
        make(model, *args, **more)
        model.load_weights([("d2t", torch.arange(HOT))])

    Draft.__init__ = made
