"""What one decode step proves about its rows, beside the KV slots that they really have."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

from inproc_scheduler import InprocScheduler

Step = dict[str, Any]


def record_step(engine: InprocScheduler, forward_batch: Any, before: Step | None) -> Step:
    """Call it before the forward pass, where a backend may read the tree."""
    codec_batch = forward_batch.codec_batch
    paths = codec_batch.read()
    requests, handles, *_ = codec_batch.signature[1]
    rows = zip(
        forward_batch.req_pool_indices.tolist(), forward_batch.seq_lens.tolist(), strict=True
    )
    return {
        "signature": codec_batch.signature,
        "unchanged": before is not None and before["signature"] == codec_batch.signature,
        "rids": [request().rid for request in requests],
        # living nodes where the signature has references to them
        "handles": [h() if isinstance(h, weakref.ref) else h for h in handles],
        "beams": codec_batch.beams,
        "reader": codec_batch.reader_name,
        "parent": paths.parent.tolist(),
        "end": paths.end.tolist(),
        "leaf": paths.leaf.tolist(),
        "slots": [engine.req_to_token[row, :length].tolist() for row, length in rows],
    }


def without_objects(steps: list[Step]) -> list[Step]:
    """The steps as JSON can hold them, without SGLang's objects."""
    return [
        {name: value for name, value in step.items() if name not in ("signature", "handles")}
        for step in steps
    ]


def path(step: Step, row: int) -> list[int]:
    """Path nodes of a row, root first."""
    nodes, node = [], step["leaf"][row]
    while node >= 0:
        nodes.append(node)
        node = step["parent"][node]
    return nodes[::-1]


def proven_common(step: Step, first: int, second: int) -> int:
    """Tokens that two rows provably share."""
    common = [
        node
        for node, other in zip(path(step, first), path(step, second), strict=False)
        if node == other
    ]
    return step["end"][common[-1]] if common else 0


def physically_common(step: Step, first: int, second: int) -> int:
    """Leading KV slots that two rows of `req_to_token` have in common."""
    slots = zip(step["slots"][first], step["slots"][second], strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], slots))


def pairs(step: Step) -> itertools.combinations[tuple[int, int]]:
    """All pairs of the batch's rows, beam members included."""
    return itertools.combinations(range(len(step["leaf"])), 2)
