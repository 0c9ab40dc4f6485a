"""CoDec prefix-shared decode attention for SGLang."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["PrefixForest", "PrefixSharedDecodeWrapper", "__version__"]

if TYPE_CHECKING:
    from sglang_codec.planning.forest import PrefixForest
    from sglang_codec.wrapper import PrefixSharedDecodeWrapper


def __getattr__(name: str):
    # lazy: SGLang imports the package at start-up, which must load neither torch nor a kernel
    if name == "PrefixSharedDecodeWrapper":
        from sglang_codec.wrapper import PrefixSharedDecodeWrapper

        return PrefixSharedDecodeWrapper
    if name == "PrefixForest":
        from sglang_codec.planning.forest import PrefixForest

        return PrefixForest
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
