"""Command-line words: ours and SGLang's, and what of them a result may name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before `--`, and the server's flags after it."""
    cut = words.index("--") if "--" in words else len(words)
    return list(words[:cut]), list(words[cut + 1 :])


def without_paths(words: Iterable[str]) -> list[str]:
    """Words with names in place of absolute paths, which is what repeats them."""
    return [_without_path(word) for word in words]


def _without_path(word: str) -> str:
    option, equals, value = word.partition("=")
    if equals and option.startswith("-"):
        return f"{option}={_without_path(value)}"
    return Path(word).name if word.startswith(("/", "~")) else word


def reason(message: str) -> str:
    """The first line of a message, with file names in place of absolute paths."""
    first = message.strip().splitlines()[0] if message.strip() else "no reason given"
    return re.sub(r"(?<![:/\w.])/(?:[\w.+-]+/)+", "", first)[:300]
