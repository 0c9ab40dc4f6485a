"""Churn on the real scheduler with `codec`, or its requests one by one with a stock backend. Run as
a program, since a process serves one scheduler:

    python churn_probe.py MODEL OUT.json '{"churn": {...}, "server": {"page_size": 16, ...}}'
    python churn_probe.py MODEL OUT.json '{"alone": ["CHURN.json", ...]}'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from churn_scheduler import Churn, ObservedScheduler
from churning.traffic import Scale, Traffic
from speculation_ops import drafting

REFERENCE = "torch_native"


def main(model: str, output: str, job: str) -> None:
    wanted = json.loads(job)
    if "alone" in wanted:
        report = _serve_alone(model, wanted["alone"])
    else:
        report = _churn(model, wanted["churn"], wanted["server"])
    Path(output).write_text(json.dumps(report))


def _churn(model: str, churn: dict[str, Any], server: dict[str, Any]) -> dict[str, Any]:
    from sglang_codec import served_group
    from sglang_codec.patches.fallbacks import FALLBACKS

    served_group.TAIL_HEADROOM = churn["headroom"]
    if server.get("speculative_algorithm") == "STANDALONE":
        server["speculative_draft_model_path"] = model
    with drafting(server):
        engine = ObservedScheduler(
            model, "codec", logprobs=churn["logprobs"], load_format="auto", **server
        )
    engine.hide_slots_while_decoding()
    traffic = Traffic(churn["seed"], Scale(**churn["scale"]))
    checked, sharing = _count_checks(), _count_sharing_plans()
    run = Churn(
        engine,
        traffic,
        requests=churn["requests"],
        most=churn["most"],
        flush_every=churn["flush_every"],
        seed=churn["seed"],
    )
    run.run()
    run.come_back_at_once()
    run.pass_by()
    return {
        "answers": [answer.as_json() for answer in run.answers],
        "levels": run.levels,
        "totals": engine.decode_backend.planner.totals.to_dict(),
        "fallbacks": dict(FALLBACKS.counts),
        "checked": len(checked),
        "sharing": len(sharing),
        "overlap": engine.scheduler.enable_overlap,
        "modes": dict(engine.modes),
    }


def _count_checks() -> list[int]:
    """Grows by the number of shared runs whenever the debug invariant has held."""
    import sglang_codec.backend as backend

    checked, check = [], backend.check_sharing

    def counted(forest: Any, *args: Any) -> None:
        check(forest, *args)
        checked.append(forest.num_shared)

    backend.check_sharing = counted
    return checked


def _count_sharing_plans() -> list[int]:
    """Grows by the number of shared runs whenever a plan with any, or a part of it, is sent."""
    from sglang_codec.batch_planner import BatchPlanner

    sharing, plan_if_changed = [], BatchPlanner.plan_if_changed

    def counted(self: BatchPlanner, *args: Any, **options: Any) -> Any:
        new = plan_if_changed(self, *args, **options)
        if new:
            sharing.extend(one.packed.num_shared for one in self.made if one.packed.num_shared)
        return new

    BatchPlanner.plan_if_changed = counted
    return sharing


def _serve_alone(model: str, files: list[str]) -> dict[str, Any]:
    """The same prompts, one after the other and without a radix tree; by file, in its order."""
    engine = ObservedScheduler(
        model, REFERENCE, load_format="auto", max_running_requests=1, disable_radix_cache=True
    )
    return {file: [_alone(engine, answer) for answer in _answers(file)] for file in files}


def _answers(file: str) -> list[dict[str, Any]]:
    return json.loads(Path(file).read_text())["answers"]


def _alone(engine: ObservedScheduler, answer: dict[str, Any]) -> dict[str, Any]:
    if not answer["output_ids"]:  # aborted before its first token
        return {"output_ids": [], "logprobs": []}
    rid = engine.submit(answer["input_ids"], len(answer["output_ids"]))
    engine.serve()
    request = engine.requests.pop(rid)
    return {
        "output_ids": list(request.output_ids),
        "logprobs": list(request.logprob.output_token_logprobs_val),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
