#!/usr/bin/env python3
"""Few-shot questions: many prompts that begin with the same worked examples, decoded together.

All requests share the common prompt, so a stock backend reads its KV once per request and the
codec backend once. Runs against engines in this process (--model) or a running server (--url).

    python scripts/serve/few_shot.py --model MODEL --backend codec,flashinfer --questions 32
    python scripts/serve/few_shot.py --url http://127.0.0.1:30000 --shared-tokens 8192
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from library.options import parser_of, positive
from library.servers.clients import GenerationError, Request
from library.servers.encoders import Encoder
from library.servers.engines import encoder_for
from rich.console import Console
from workloads.options import add_common_options, check_common_options
from workloads.problems import few_shot_texts, make_problems, read_answer
from workloads.report import report
from workloads.runs import BackendRun, Session, run_backends, sampling_of


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_of(__doc__)
    add = parser.add_argument_group("workload").add_argument
    add("--shots", type=positive, default=8, help="examples in the common prompt (default: 8)")
    longer = "make the common prompt exactly N tokens long, with as many examples as that takes"
    add("--shared-tokens", type=positive, metavar="N", help=longer)
    add("--questions", type=positive, default=16, help="decoded together (default: 16)")
    add("--max-new-tokens", type=positive, default=32, help="per request (default: 32)")
    add_common_options(parser)
    return parser


def make_requests(
    encoder: Encoder,
    *,
    shots: int,
    questions: int,
    max_new_tokens: int,
    seed: int,
    shared_tokens: int | None = None,
) -> tuple[tuple[int, ...], list[Request], list[int]]:
    """Common prompt, requests that begin with it, and the right answers."""
    common_text, asked = few_shot_texts(shots, questions, seed)
    common = encoder.encode(common_text)
    if shared_tokens is not None:
        common = _exactly(encoder, common, shared_tokens, seed)
    requests = [
        Request(
            f"question {number}",
            tuple(common) + tuple(encoder.encode(problem.asked())),
            max_new_tokens,
        )
        for number, problem in enumerate(asked)
    ]
    return tuple(common), requests, [problem.answer for problem in asked]


def _exactly(encoder: Encoder, common: list[int], length: int, seed: int) -> list[int]:
    """The last `length` tokens of a prompt that starts with more examples."""
    batch = 0
    while len(common) < length:
        batch += 1
        more = make_problems(64, seed + 1_000_003 * batch)
        common = encoder.encode("".join(problem.worked() for problem in more)) + common
    return common[len(common) - length :]


def count_right(run: BackendRun, answers: Sequence[int], encoder: Encoder) -> int | None:
    """Completions that give the right answer; None without text."""
    if not encoder.is_text:
        return None
    texts = [encoder.decode(completion.output_ids) for completion in run.completions]
    return sum(read_answer(text) == answer for text, answer in zip(texts, answers, strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the workload on every backend, compare, and report."""
    parser = make_parser()
    args = parser.parse_args(argv)
    check_common_options(parser, args)
    console, encoder = Console(), encoder_for(args)
    common, requests, answers = make_requests(
        encoder,
        shots=args.shots,
        questions=args.questions,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
        shared_tokens=args.shared_tokens,
    )
    title = f"few-shot: {len(requests)} requests share {len(common):,} tokens"
    own = [len(request.input_ids) - len(common) for request in requests]
    each = f"add {min(own)} to {max(own)}, and generate {args.max_new_tokens}"
    console.print(f"{title}, {each}", soft_wrap=True)

    def workload(session: Session) -> None:
        session.warm_up(Request("common prompt", common, 1))
        session.serve("questions", requests)

    def own_figures(run: BackendRun) -> dict[str, Any]:
        right = count_right(run, answers, encoder)
        if right:
            console.print(f"{run.backend}: {right} of {len(answers)} answers are right")
        return {"right_answers": right}

    expected = len(requests) * args.max_new_tokens
    runs = run_backends(args, sampling_of(args), expected, workload, console)
    size = {
        "name": "few_shot",
        "requests": len(requests),
        "shared_tokens": len(common),
        "max_new_tokens": args.max_new_tokens,
        "seed": args.seed,
        "text": encoder.is_text,
    }
    return report(args, title, size, runs, encoder, own_figures, console)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GenerationError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
