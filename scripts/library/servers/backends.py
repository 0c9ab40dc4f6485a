"""Names of attention backends: `codec`, or `fa3/codec` where one prefills and one decodes."""

from __future__ import annotations


def backend_flags(backend: str) -> list[str]:
    """The server's flags for a backend."""
    prefill, _, decode = backend.partition("/")
    if decode:
        return [f"--prefill-attention-backend={prefill}", f"--decode-attention-backend={decode}"]
    return [f"--attention-backend={backend}"]


def uses_codec(backend: str) -> bool:
    """True if `codec` decodes."""
    return backend.split("/")[-1] == "codec"
