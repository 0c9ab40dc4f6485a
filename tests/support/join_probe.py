"""Serve rows that join and leave one at a time, and write down who ran and what was planned.

python join_probe.py MODEL_FOLDER OUTPUT.json BACKEND '{"disable_overlap_schedule": false}'
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inproc_scheduler import InprocScheduler, write_tiny_llama
from sharing_probe import source_of_tokens

TRUNK = 48
ROWS = 4


def main(model_folder: str, output: str, backend: str, server_args: str) -> None:
    engine = InprocScheduler(
        write_tiny_llama(Path(model_folder)), backend, **json.loads(server_args)
    )
    report = {"one by one": one_by_one(engine), "twins": twins(engine)}
    report["tokens"] = {rid: list(req.output_ids) for rid, req in engine.requests.items()}
    Path(output).write_text(json.dumps(report))


def one_by_one(engine: InprocScheduler) -> dict[str, Any]:
    """Few-shot rows on a warm trunk: each joins two steps after the one before."""
    some = source_of_tokens(0)
    trunk = some(TRUNK)
    engine.submit(trunk + some(3), 1, rid="warm")
    engine.run()
    waiting = [trunk + some(5 + row) for row in range(ROWS)]
    engine.submit(waiting.pop(0), 3 * ROWS, rid="row 0")

    def join(step: int, prefilled: list[str]) -> None:
        if waiting and step % 2 == 0 and not prefilled:
            row = ROWS - len(waiting)
            engine.submit(waiting.pop(0), 3 * ROWS - row, rid=f"row {row}")

    return observed(engine, join)


def twins(engine: InprocScheduler) -> dict[str, Any]:
    """A prompt is prefilled, and again before its tokens are the tree's. The first request ends
    with its first token; then the second gets the first one's KV slots, between two decode steps.
    """
    some = source_of_tokens(1)
    trunk = some(TRUNK)
    engine.submit(trunk + some(3), 9, rid="warm too")
    waiting, tail = ["first", "second"], some(9)

    def join(step: int, prefilled: list[str]) -> None:
        if (step == 3 and waiting == ["first", "second"]) or prefilled == ["first"]:
            rid = waiting.pop(0)
            engine.submit(trunk + tail, 1 if rid == "first" else 6, rid=rid)

    return observed(engine, join)


def observed(engine: InprocScheduler, at_step: Callable[[int, list[str]], None]) -> dict[str, Any]:
    """Who decoded in each step, the plans made, and KV slots that the device got wrong."""
    backend, rows, wrong, moved = engine.decode_backend, [], [], []
    planner = getattr(backend, "planner", None)
    plans = planner.totals.plans if planner else 0

    def on_forward(_: InprocScheduler, forward_batch: Any) -> None:
        decodes, rids = forward_batch.forward_mode.is_decode(), list(forward_batch.rids)
        if decodes:
            rows.append(rids)
        at_step(len(rows), [] if decodes else rids)

    if planner:
        watch(engine, wrong, moved)
    engine.run(on_forward)
    plans = planner.totals.plans - plans if planner else 0
    return {"rows": rows, "plans": plans, "wrong": wrong, "moved": len(moved)}


def watch(engine: InprocScheduler, wrong: list[list[int]], moved: list[Any]) -> None:
    """Compare the KV index of every decode step with SGLang's table."""
    from sglang_codec.batch_planner import MovedRows, _spans

    backend = engine.decode_backend
    prepare, send = type(backend)._prepare, type(backend)._send

    def sent(new: Any, pool_rows: Any) -> None:
        moved.extend(one for one in new if isinstance(one, MovedRows))
        send(backend, new, pool_rows)

    def prepared(forward_batch: Any, **options: Any) -> None:
        prepare(backend, forward_batch, **options)
        new = backend.query_rows
        lengths = forward_batch.seq_lens.cpu().numpy() + new * (new > 1)
        for row, first, tokens, entry in _spans(backend.planner.first, lengths).tolist():
            # the newest tokens' slots are appended on the device later in the step
            known = min(tokens, int(lengths[row]) - new - first)
            table = engine.req_to_token[forward_batch.req_pool_indices[row]]
            index = backend.groups[0].buffers.kv_index
            if not index[entry : entry + known].equal(table[first : first + known]):
                wrong.append([row, first, known])

    backend._prepare, backend._send = prepared, sent


if __name__ == "__main__":
    main(*sys.argv[1:])
