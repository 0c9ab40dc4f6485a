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
from weakref import ref

from inproc_scheduler import InprocScheduler, write_tiny_llama
from step_record import record_step, without_objects

LATE_JOIN_AT = 4


def main(model_folder: str, output: str, server_args: str) -> None:
    from sglang.srt.server_args import ATTENTION_BACKEND_CHOICES

    from sglang_codec.dump import path_of_rank
    from sglang_codec.factory import attention_backend_names
    from sglang_codec.graph_sizes import decode_graphs
    from sglang_codec.patches.eager_start import EAGER_START
    from sglang_codec.patches.fallbacks import FALLBACKS
    from sglang_codec.patches.registry import PATCHES, times_applied
    from sglang_codec.patches.tree_readers import select_reader
    from sglang_codec.settings import NAMESPACES

    model = write_tiny_llama(Path(model_folder))
    engine = InprocScheduler(model, **json.loads(server_args))
    looked, totals_at_start = EAGER_START.done, engine.decode_backend.planner.totals.steps
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
        "graphs": decode_graphs(engine.model_runner),
        "arguments": [name for name in NAMESPACES if hasattr(engine.server_args, name)],
        "names": list(attention_backend_names(engine.model_runner)),
        "looked": looked,
        "totals_at_start": totals_at_start,
        "steps": without_objects(steps),
        "dump": path_of_rank("plan.json", engine.model_runner).name,
        "fallbacks": counts,
        "late_join": late,
        "stale_leaves": _leaves_after_eviction(engine, reader, steps),
        "seen": _see_a_step_with_a_score_mod(engine),
        "outputs": {rid: list(req.output_ids) for rid, req in engine.requests.items()},
    }
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
            steps.append(record_step(engine, forward_batch, steps[-1] if steps else None))
            if len(steps) == LATE_JOIN_AT:
                engine.submit(late, 3, rid="late")

    engine.run(on_forward)
    return steps, "late"


def _leaves_after_eviction(
    engine: InprocScheduler, reader: Any, steps: list[dict[str, Any]]
) -> list[int]:
    """What is proven of handles whose nodes were evicted: nothing."""
    from sglang.srt.mem_cache.base_prefix_cache import EvictParams

    from sglang_codec.patches.kept_paths import KeptBatches
    from sglang_codec.patches.tree_readers import weak

    engine.tree_cache.evict(EvictParams(num_tokens=1 << 20))
    handles = [handle for step in steps for handle in step["handles"]]
    # each handle twice: what only one row passes is left out
    requests = [Request() for _ in handles * 2]
    states = map(ref, requests), map(weak, handles * 2), *[[1 << 20] * len(requests)] * 3
    return KeptBatches(reader).read(tuple(map(tuple, states))).leaf.tolist()


class Request:
    """Only who it is matters."""


def _see_a_step_with_a_score_mod(engine: InprocScheduler) -> dict[str, Any]:
    """A dummy step of a model whose second layer passes a score_mod."""
    from sglang_codec.attention_layers import attention_layers
    from sglang_codec.step_probe import see_a_step

    layer = next(one for one in attention_layers(engine.model_runner.model) if one.layer_id == 1)
    forward = layer.forward
    layer.forward = lambda *args, **more: forward(*args, **more, score_mod=object(), mask=None)
    seen = see_a_step(engine.model_runner.eager_runner, engine.decode_backend)
    del layer.forward
    return {"reached": sorted(seen.reached), "reasons": seen.reasons}


def _settings_found(engine: InprocScheduler) -> dict[str, str]:
    from sglang_codec.settings import NAMESPACES, find_setting

    return {name: find_setting(engine.model_runner, name)[0] for name in NAMESPACES}


if __name__ == "__main__":
    main(*sys.argv[1:])
