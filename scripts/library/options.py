"""Command lines: a wrong word is refused with what it should be."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Iterable
from typing import Any


def parser_of(description: str, **more: Any) -> argparse.ArgumentParser:
    """A parser whose help is a program's docstring, as it stands."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, formatter_class=form, **more)


def some_of(known: Iterable[str], separator: str = ",") -> Callable[[str], list[str]]:
    """The type of a list of known words, as in `codec,fa3`; each counts once."""

    def parse(text: str) -> list[str]:
        words = [word.strip() for word in text.split(separator) if word.strip()]
        unknown = [word for word in words if word not in known]
        if unknown or not words:
            raise argparse.ArgumentTypeError(
                f"{(unknown or [text])[0]!r} is unknown: choose from {separator.join(known)}"
            )
        return list(dict.fromkeys(words))

    return parse


def parse_setting(text: str) -> tuple[str, Any]:
    """`key=value`, the value being a Python literal or else a string."""
    key, equals, value = text.partition("=")
    key = key.strip().lstrip("-").replace("-", "_")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not key=value, as in --engine mem_fraction_static=0.8"
        )
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def add_engine_option(parser: argparse.ArgumentParser) -> None:
    """--engine KEY=VALUE."""
    about = "any argument of sglang.Engine, as in --engine page_size=16; may be repeated"
    form = {"action": "append", "default": [], "metavar": "KEY=VALUE"}
    parser.add_argument("--engine", type=parse_setting, **form, help=about)


def parse_backends(text: str) -> list[str]:
    """A comma list of backend names without repetition."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) != len(names):
        raise argparse.ArgumentTypeError(
            f"{text!r}: name each backend once, as in --backend codec,flashinfer"
        )
    if bad := [name for name in names if name.count("/") > 1 or name.strip("/") != name]:
        raise argparse.ArgumentTypeError(
            f"{bad[0]!r}: one name, or PREFILL/DECODE as in --backend fa3/codec"
        )
    return names


def positive(text: str) -> int:
    """A whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: need a whole number of at least 1")
    return value


def head_dims(text: str) -> tuple[int, int]:
    """Dimensions of a key and a value head, as in 128 or 192/128."""
    words = text.split("/")
    if len(words) > 2:
        raise argparse.ArgumentTypeError(f"{text!r}: need one dimension or two, as in 192/128")
    return positive(words[0]), positive(words[-1])


def positive_number(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: need a number above 0")
    return value
