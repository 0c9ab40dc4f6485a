"""Serve a small forest on the real scheduler and write down, per decode step, what the tree proves
and which KV slots the rows really have. Run as a program, since a process serves one scheduler:

    python attach_probe.py MODEL_FOLDER OUTPUT.json '{"attention_backend": "codec", ...}'
"""

from __future__ import annotations

import json
import random
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from inproc_scheduler import InprocScheduler, write_tiny_llama

LATE_JOIN_AT = 4


def main(model_folder: str, output: str, server_args: str) -> None:
    from sglang.srt.server_args import ATTENTION_BACKEND_CHOICES

    from sglang_codec.dump import path_of_rank
    from sglang_codec.patches.fallbacks import FALLBACKS
    from sglang_codec.patches.registry import PATCHES, times_applied
    from sglang_codec.patches.tree_readers import select_reader

    model = write_tiny_llama(Path(model_folder))
    engine = InprocScheduler(model, **json.loads(server_args))
    steps, late = _serve(engine)
    counts = dict(FALLBACKS.counts)
    reader = select_reader(engine.tree_cache)
    report = {
        "sglang": version("sglang"),
        "tree": type(engine.tree_cache).__name__,
        "core": type(getattr(engine.tree_cache, "tree_core", None)).__name__,
        "reader": reader.name,
        "backend": type(engine.backend).__name__,
        "decode_backend": type(engine.decode_backend).__name__,
        "choices": ATTENTION_BACKEND_CHOICES.count("codec"),
        "hooks": {patch.target: times_applied(patch) for patch in PATCHES},
        "settings": _settings_found(engine),
        "dump": path_of_rank("plan.json", engine.model_runner).name,
        "steps": steps,
        "fallbacks": counts,
        "late_join": late,
        "stale_leaves": _leaves_after_eviction(engine, reader, steps),
        "outputs": {rid: list(req.output_ids) for rid, req in engine.requests.items()},
    }
    for step in steps:
        # tree nodes, which JSON has no word for
        del step["handles"], step["signature"]
    Path(output).write_text(json.dumps(report))


def _serve(engine: InprocScheduler) -> tuple[list[dict[str, Any]], str]:
    """Depth-two sharing, a namespace of its own, a stranger, and a late join that splits a node."""
    random_token = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [random_token.randrange(3, 500) for _ in range(count)]

    trunk, branch, steps = tokens(96), tokens(48), []
    for row in range(4):
        middle = branch if row % 2 else []
        engine.submit(trunk + middle + tokens(5 + 7 * row), 4 + row)
    engine.submit(trunk + tokens(9), 6, rid="namespaced", extra_key="another tenant")
    engine.submit(tokens(20), 5, rid="stranger")
    late = trunk[:64] + tokens(11)

    def on_forward(_: InprocScheduler, forward_batch: Any) -> None:
        if forward_batch.forward_mode.is_decode():
            steps.append(_record(engine, forward_batch, steps[-1] if steps else None))
            if len(steps) == LATE_JOIN_AT:
                engine.submit(late, 3, rid="late")

    engine.run(on_forward)
    return steps, "late"


def _record(
    engine: InprocScheduler, forward_batch: Any, before: dict[str, Any] | None
) -> dict[str, Any]:
    codec_batch = forward_batch.codec_batch
    paths = codec_batch.read()
    rows = zip(
        forward_batch.req_pool_indices.tolist(), forward_batch.seq_lens.tolist(), strict=True
    )
    return {
        "signature": codec_batch.signature,
        "unchanged": before is not None and before["signature"] == codec_batch.signature,
        "rids": [request.rid for request in codec_batch.signature[1][0]],
        "handles": list(codec_batch.signature[1][1]),
        "reader": codec_batch.reader_name,
        "parent": paths.parent.tolist(),
        "end": paths.end.tolist(),
        "leaf": paths.leaf.tolist(),
        "slots": [engine.req_to_token[row, :length].tolist() for row, length in rows],
    }


def _leaves_after_eviction(
    engine: InprocScheduler, reader: Any, steps: list[dict[str, Any]]
) -> list[int]:
    """What is proven of handles whose nodes were evicted: nothing."""
    from sglang.srt.mem_cache.base_prefix_cache import EvictParams

    engine.tree_cache.evict(EvictParams(num_tokens=1 << 20))
    handles = [handle for step in steps for handle in step["handles"]]
    # each handle twice: what only one row passes is not looked at
    return reader.read(handles * 2, [1 << 20] * (2 * len(handles))).leaf.tolist()


def _settings_found(engine: InprocScheduler) -> dict[str, str]:
    from sglang_codec.refusals import NAMESPACES, find_setting

    return {name: find_setting(engine.model_runner, name)[0] for name in NAMESPACES}


if __name__ == "__main__":
    main(*sys.argv[1:])
