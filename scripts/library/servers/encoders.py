"""Text to token ids: with the model's tokenizer, or with made-up ids for a model without one."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

from library.servers.models import vocabulary_of

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")

# ids below this are usually special tokens (begin, end, padding)
_FIRST_ORDINARY_ID = 16


class TokenizerEncoder:
    """The model's own tokenizer."""

    is_text = True

    def __init__(self, name_or_path: str) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(name_or_path)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without any special token."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


class HashEncoder:
    """One id per word or sign, from its checksum: the same text gives the same ids."""

    is_text = False

    def __init__(self, vocab_size: int) -> None:
        if vocab_size <= _FIRST_ORDINARY_ID:
            raise ValueError(
                f"a vocabulary of {vocab_size} tokens is too small for made-up token ids:"
                f" need more than {_FIRST_ORDINARY_ID}"
            )
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        ordinary = self.vocab_size - _FIRST_ORDINARY_ID
        words = re.findall(r"\w+|[^\w\s]|\n", text)
        return [_FIRST_ORDINARY_ID + zlib.crc32(word.encode()) % ordinary for word in words]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(str(token) for token in ids)


Encoder = TokenizerEncoder | HashEncoder


def has_tokenizer(model: str) -> bool:
    """False for a local model directory without tokenizer files (dummy weights)."""
    directory = Path(model)
    if not directory.is_dir():
        return True
    return any((directory / name).exists() for name in _TOKENIZER_FILES)


def make_encoder(model: str) -> Encoder:
    """The model's tokenizer, or made-up ids if it has none."""
    return TokenizerEncoder(model) if has_tokenizer(model) else HashEncoder(vocabulary_of(model))
