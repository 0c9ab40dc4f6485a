"""What the codec backend counts, as SGLang's `/server_info` shows it."""

from __future__ import annotations

from collections import Counter
from typing import Any

# of the counter -> name in a row; those of seconds keep their names
_COUNTED = {
    "steps": "decode_steps",
    "plans": "plans",
    "moves": "moves",
    "kv_tokens_read": "kv_tokens_read",
    "kv_tokens_stock": "kv_tokens_stock",
}
SECONDS = "_seconds"  # how the names of the host's times end, which differ between versions
_GAUGE = "slowest_seconds"  # of one plan, and no sum


def codec_counters(info: dict[str, Any]) -> dict[str, Any] | None:
    """The totals of all ranks that decode with codec and tell; None if there is none.

    Every data-parallel rank tells; of tensor- and pipeline-parallel ones, which run the same
    batches, only the first.
    """
    states = info.get("internal_states") or []
    ranks = [state["codec"] for state in states if isinstance(state, dict) and "codec" in state]
    if not ranks:
        return None
    fallbacks: Counter[str] = Counter()
    for rank in ranks:
        fallbacks.update(rank["fallbacks"])
    times = [name for name in ranks[0] if name.endswith(SECONDS) and name != _GAUGE]
    counted = [*_COUNTED, *times]
    # an older codec tells less
    summed = {counter: sum(rank.get(counter, 0) for rank in ranks) for counter in counted}
    return summed | {"fallbacks": dict(fallbacks)}


def increase(before: dict[str, Any] | None, after: dict[str, Any] | None) -> dict[str, Any]:
    """What a row added to the counters; `fallbacks` by reason. Nothing for a stock backend."""
    if before is None or after is None:
        return {}
    row = {
        _COUNTED.get(counter, counter): after[counter] - before[counter]
        for counter in before
        if counter != "fallbacks"
    }
    fallbacks = {
        reason: count - before["fallbacks"].get(reason, 0)
        for reason, count in after["fallbacks"].items()
    }
    return row | {"fallbacks": {reason: count for reason, count in fallbacks.items() if count}}
