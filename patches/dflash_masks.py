"""Spare block drafts (DFLASH) the mask that codec does not read."""

from __future__ import annotations

_NAMES = "_DFLASH_VERIFY_SKIP_CUSTOM_MASK_BACKENDS"
# 0.5.17 asks for the name of the hybrid and not of what it verifies with
_CODEC = frozenset({"CodecDecodeBackend", "HybridAttnBackend"})


def spare_the_mask() -> None:
    """Count codec to the backends for which SGLang builds no mask while it verifies.

    Why: a mask of all tokens of all rows would be built at each step, and chains need none.
    Upstream: backends are known by the names of their classes, in a frozen set of the module; those
    that may verify layers for codec (fa3, flashinfer, triton) are in it.
    Remove when: SGLang asks a backend whether it reads the mask.
    """
    from sglang.srt.speculative import dflash_utils

    setattr(dflash_utils, _NAMES, getattr(dflash_utils, _NAMES, frozenset()) | _CODEC)
