"""SGLang's own radix tree test, unchanged, against a running server."""

from __future__ import annotations

import random
import time
from typing import Any

VOCABULARY = 32000  # its token ids
POOL = 8192  # tokens that its longest requests fit into


def run_stock_test(url: str, seed: int) -> dict[str, Any]:
    """400 requests of a random prefix tree in one call; `error` is empty if all were served."""
    random.seed(seed)
    started, error = time.monotonic(), ""
    try:
        from sglang.test.kits.radix_cache_server_kit import run_radix_attention_test

        run_radix_attention_test(url)
    except Exception as raised:  # no such kit here, an assertion, or a connection that broke
        error = f"{type(raised).__name__}: {raised}"[:300]
    return {"seed": seed, "seconds": time.monotonic() - started, "error": error}
