"""The shape of a well-known model without its weights, for `--load-format dummy`: no download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# the published configurations
_LLAMA3_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    # of Llama 3.1, for the 100,000 tokens of the document workloads
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0",
}
_SMALL = _LLAMA3_8B | {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32768,
}
SHAPES = {
    "llama3-8b": _LLAMA3_8B,
    # every feature and every token id that SGLang's tests use, and up at once
    "small": _SMALL,
    # its layers run under attention data parallelism, Llama's do not
    "small-qwen3": _SMALL | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
    # seconds instead of minutes, to try things out
    "tiny": _LLAMA3_8B
    | {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 2048,
    },
}


def write_model(shape: str, folder: Path) -> Path:
    """A model directory with `config.json` and a tokenizer of one word per id.

    SGLang's benchmark makes prompts by decoding random ids and lets the server encode the text
    again: with one word per id, a prompt has exactly the tokens that were asked for.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    config = SHAPES[shape]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    begin, end, unknown = "<begin>", "<end>", "<unknown>"
    words = [begin, end, unknown, *(f"w{i}" for i in range(3, config["vocab_size"]))]
    ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token=end,
        unk_token=unknown,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    return folder


def vocabulary_of(model: str) -> int:
    """Token ids that a model has."""
    config = read_config(model)
    return int(config.get("text_config", config)["vocab_size"])


def read_config(model: str) -> dict[str, Any]:
    """A model's `config.json`, from its directory or by transformers."""
    path = Path(model) / "config.json"
    if path.is_file():
        return json.loads(path.read_text())
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model).to_dict()
