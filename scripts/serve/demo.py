#!/usr/bin/env python3
"""The main job on a machine without a GPU: what `make demo` runs.

    python scripts/serve/demo.py --model .models/tiny-llama

SGLang's engine serves a few-shot workload with --attention-backend torch_native and then codec,
our Triton kernels in Triton's interpreter, and the tokens are compared. The interpreter says
whether the results are right and what was read, and nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import few_shot
from library.options import parser_of, positive

STOCK, CODEC = "torch_native", "codec"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--model", required=True, help="a small model directory")
    parser.add_argument("--questions", type=positive, default=8, help="default: 8")
    parser.add_argument("--shots", type=positive, default=6, help="default: 6")
    parser.add_argument("--max-new-tokens", type=positive, default=16, help="default: 16")
    parser.add_argument("--out", type=Path, default=Path("out"), help="results folder")
    return parser


def verdict(results: dict[str, Any], plot: Path) -> str:
    """The demo in four lines."""
    workload, comparison = results["workload"], results["comparisons"][0]
    sharing = next(run for run in results["runs"] if run["backend"] == CODEC)["sharing"]
    same = comparison["identical"] == comparison["compared"]
    pictures = sorted(map(str, plot.parent.glob(f"{plot.stem}*{plot.suffix}")))
    lines = [
        f"{'OK' if same else 'DIFFERENT'}: {comparison['identical']} of {comparison['compared']}"
        f" requests have exactly {STOCK}'s tokens with {CODEC}",
        f"shared: {workload['shared_tokens']} prompt tokens by {workload['requests']} requests",
        f"KV tokens read: {sharing['kv_tokens_read']:,}; a stock backend reads"
        f" {sharing['kv_tokens_stock']:,} ({sharing['saved']:.0%} saved)"
        if sharing
        else "KV tokens read: not known, since no decode batch was planned",
        f"pictures: {', '.join(pictures)}",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the workload on both backends and say what came of it."""
    args = make_parser().parse_args(argv)
    results, plot = args.out / "demo.json", args.out / "demo.png"
    print("The engine starts twice, each time for about half a minute.")
    workload = {
        "--model": args.model,
        "--backend": f"{STOCK},{CODEC}",
        "--questions": args.questions,
        "--shots": args.shots,
        "--max-new-tokens": args.max_new_tokens,
        "--json": results,
        "--plot": plot,
    }
    options = [str(word) for pair in workload.items() for word in pair]
    # fp32 on both sides: what differs by more than this is no rounding
    status = few_shot.main([*options, "--logprobs", "--require-equal", "--tie-gap", "0.001"])
    print("\n" + verdict(json.loads(results.read_text()), plot))
    return status


if __name__ == "__main__":
    sys.exit(main())
