#!/usr/bin/env python3
"""Judge the differing tokens of a few-shot run against the exact model.

    python scripts/serve/few_shot.py --model MODEL --backend fa3,codec --logprobs --json run.json
    python scripts/serve/check_ties.py run.json --model MODEL --shots 24 --json verdict.json

Where two backends part, both tokens were nearly as likely. This computes the logits at that place
in float32, on the CPU, and how far a plain bfloat16 forward of the same model is from float32 over
all tokens of the same requests: what rounding alone does to the gap of two logits. A difference
whose exact gap is inside that noise is rounding; a larger one would be an error.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from few_shot import make_requests
from library import results
from library.options import parser_of, positive
from library.servers.encoders import make_encoder


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("run", type=Path, help="what few_shot.py --logprobs --json wrote")
    parser.add_argument("--model", required=True, help="the model directory of that run")
    parser.add_argument("--shots", type=positive, required=True, help="--shots of that run")
    parser.add_argument("--json", type=Path, help="write the verdict here")
    return parser


class Teacher:
    """Logits of a model along given tokens, the common prompt computed once."""

    def __init__(self, model: str, dtype: torch.dtype, common: Sequence[int]) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self.common = len(common)
        with torch.inference_mode():
            prompt = torch.tensor([list(common)])
            self.cache = self.model(prompt, use_cache=True).past_key_values

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """float64 ``[tokens behind the common ones, vocabulary]``: logits after each of them."""
        rest = torch.tensor([list(tokens[self.common :])])
        output = self.model(rest, past_key_values=copy.deepcopy(self.cache), use_cache=True)
        return output.logits[0].double().numpy()


def top_gaps(exact: np.ndarray, rounded: np.ndarray) -> np.ndarray:
    """At every place: how far rounding moves the gap of the exact model's top two logits."""
    places = np.arange(len(exact))
    second, first = np.argsort(exact, axis=1)[:, -2:].T
    gaps = [logits[places, first] - logits[places, second] for logits in (exact, rounded)]
    return np.abs(gaps[1] - gaps[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line per difference and the verdict."""
    parser = make_parser()
    args = parser.parse_args(argv)
    run = json.loads(args.run.read_text())
    workload, comparison = run["workload"], run["comparisons"][0]
    common, requests, _ = make_requests(
        make_encoder(args.model),
        shots=args.shots,
        questions=workload["requests"],
        max_new_tokens=workload["max_new_tokens"],
        seed=workload["seed"],
    )
    if len(common) != workload["shared_tokens"]:
        parser.error(
            f"--shots {args.shots} gives a common prompt of {len(common)} tokens, the run had "
            f"{workload['shared_tokens']}: name the run's own --shots and --model"
        )
    prompts = {request.name: list(request.input_ids) for request in requests}
    outputs = {r["name"]: r["output_ids"] for r in run["runs"][0]["requests"]}
    teachers = [Teacher(args.model, dtype, common) for dtype in (torch.float32, torch.bfloat16)]
    noise, verdicts = [], []
    for difference in comparison["differences"]:
        name, position = difference["name"], difference["position"]
        exact, rounded = (teacher.logits(prompts[name] + outputs[name]) for teacher in teachers)
        noise.append(top_gaps(exact, rounded))
        row = exact[len(prompts[name]) + position - 1 - len(common)]
        pair = row[difference["expected"]], row[difference["got"]]
        gap, rank = round(float(pair[0] - pair[1]), 4), int((row > min(pair)).sum()) + 1
        verdicts.append({"name": name, "position": position, "exact_gap": gap, "lower_rank": rank})
        print(f"{name} token {position}: exact gap {gap:+.3f}, the less likely is number {rank}")
    moved = np.concatenate(noise)
    limits = {f"p{q}": round(float(np.percentile(moved, q)), 4) for q in (50, 90, 95, 99)}
    limits["max"] = round(float(moved.max()), 4)
    print(f"bfloat16 moves the gap of the top two logits, over {len(moved)} places: {limits}")
    inside = sum(abs(verdict["exact_gap"]) <= limits["p95"] for verdict in verdicts)
    print(f"{len(verdicts)} of {comparison['compared']} requests differ, {inside} of them by an")
    print("exact gap within the 95th percentile of that")
    if args.json:
        document = {name: comparison[name] for name in ("compared", "identical")}
        document |= {"run": args.run.name, "rounding": limits, "differences": verdicts}
        results.write(document, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
