#!/usr/bin/env python3
"""Make a tiny random model and a tokenizer, offline, in a second or two.

python scripts/serve/make_tiny_model.py .models/tiny-llama
python scripts/serve/make_tiny_model.py OUT --arch qwen3 --heads 8 --kv-heads 2 --head-dim 128
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from library.options import parser_of, positive
from workloads.problems import make_problems

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BEGIN, END, PAD = "<begin>", "<end>", "<pad>"

# wide enough that the two best logits of a random model are far apart compared with rounding
_WEIGHT_SPREAD = 0.15


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("out", type=Path, help="model directory to write")
    parser.add_argument("--arch", choices=("llama", "qwen2", "qwen3"), default="llama")
    parser.add_argument("--layers", type=positive, default=2, help="default: 2")
    parser.add_argument("--heads", type=positive, default=4, help="query heads (default: 4)")
    parser.add_argument("--kv-heads", type=positive, default=2, help="default: 2")
    parser.add_argument("--head-dim", type=positive, default=64, help="default: 64")
    parser.add_argument("--hidden-size", type=positive, default=128, help="default: 128")
    parser.add_argument("--vocab-size", type=positive, default=1024, help="default: 1024")
    parser.add_argument("--context", type=positive, default=8192, help="positions (default: 8192)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    return parser


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained on this project's own word problems."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BEGIN, END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((p.worked() for p in make_problems(500, seed=0)), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=PAD
    )
    fast.chat_template = (
        "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    return fast


def make_model(args: argparse.Namespace, vocab_size: int) -> PreTrainedModel:
    """Random weights, the same for the same options."""
    import torch
    import transformers

    names = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    config_class = getattr(transformers, names[args.arch] + "Config")
    model_class = getattr(transformers, names[args.arch] + "ForCausalLM")
    torch.manual_seed(args.seed)
    config = config_class(
        vocab_size=vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=2 * args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        head_dim=args.head_dim,
        max_position_embeddings=args.context,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        tie_word_embeddings=False,
        initializer_range=_WEIGHT_SPREAD,
    )
    return model_class(config).to(getattr(torch, args.dtype)).eval()


def main(argv: Sequence[str] | None = None) -> int:
    """Write the model directory."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.heads % args.kv_heads:
        parser.error(
            f"--heads {args.heads} is not a multiple of --kv-heads {args.kv_heads}: change one"
        )
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = make_tokenizer(args.vocab_size)
    model = make_model(args, max(args.vocab_size, len(tokenizer)))
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(args.out)
    model.save_pretrained(args.out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{args.out}: {args.arch}, {args.layers} layers, {args.heads}/{args.kv_heads} heads of"
        f" {args.head_dim}, {len(tokenizer)} tokens, {parameters / 1e6:.2f} M parameters"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
