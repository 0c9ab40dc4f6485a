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
_COMMON = {
    "torch_dtype": "bfloat16",
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
# sinks, and every other layer with a window that is too short for codec
_GPT_OSS_20B = _COMMON | {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 24,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "sliding_window": 128,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "attention_bias": True,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "swiglu_limit": 7.0,
    "vocab_size": 201088,
    "max_position_embeddings": 131072,
    "rope_theta": 150000.0,
    "rope_scaling": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0},
}
# one head per KV head, and three of four layers with a window of 4,096 tokens
_OLMO3_7B = _COMMON | {
    "architectures": ["Olmo2ForCausalLM"],
    "model_type": "olmo3",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "layer_types": [*["sliding_attention"] * 3, "full_attention"] * 8,
    "sliding_window": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "vocab_size": 100278,
    "max_position_embeddings": 65536,
    "rope_theta": 500000.0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
# head dim 256 in one of four layers, the others are linear
_QWEN35_27B = _COMMON | {
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "num_hidden_layers": 64,
    "layer_types": [*["linear_attention"] * 3, "full_attention"] * 16,
    "full_attention_interval": 4,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "attn_output_gate": True,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
    "partial_rotary_factor": 0.25,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000000.0,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
        "mrope_interleaved": True,
    },
    "rope_theta": 10000000.0,
    "vocab_size": 248320,
    "max_position_embeddings": 131072,
}
SHAPES = {
    "llama3-8b": _LLAMA3_8B,
    # drafts for it, as EAGLE's and MTP's models of one layer do
    "llama3-8b-draft": _LLAMA3_8B | {"num_hidden_layers": 1},
    "gpt-oss-20b": _GPT_OSS_20B,
    "olmo3-7b": _OLMO3_7B,
    "qwen3.5-27b": _QWEN35_27B,
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
