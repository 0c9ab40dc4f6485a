#!/usr/bin/env python3
"""Tree of thoughts: a problem is solved in levels, each continuing the best thoughts so far.

Every level proposes --branching continuations of every kept thought and decodes them together;
their prompts share the problem and their ancestors' text. The best --keep by mean log-probability
are continued. Runs against engines in this process (--model) or a running server (--url).

    python scripts/serve/tree_of_thought.py --model MODEL --backend codec,fa3 --depth 4
    python scripts/serve/tree_of_thought.py --url http://127.0.0.1:30000 --keep 8
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from library.options import parser_of, positive
from library.servers.clients import GenerationError, Request
from library.servers.encoders import Encoder
from library.servers.engines import encoder_for
from rich.console import Console
from workloads.options import add_common_options, check_common_options
from workloads.problems import few_shot_texts
from workloads.report import report
from workloads.runs import BackendRun, Session, run_backends, sampling_of
from workloads.thoughts import Thought, best, draw_tree, grow, level_sizes, propose


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_of(__doc__)
    add = parser.add_argument_group("workload").add_argument
    add("--branching", type=positive, default=4, help="continuations of a thought (default: 4)")
    add("--depth", type=positive, default=3, help="levels (default: 3)")
    add("--keep", type=positive, default=4, help="thoughts kept after a level (default: 4)")
    add("--max-new-tokens", type=positive, default=32, help="tokens per thought (default: 32)")
    add("--shots", type=positive, default=2, help="examples before the problem (default: 2)")
    add_common_options(parser)
    return parser


def make_root(encoder: Encoder, shots: int, seed: int) -> Thought:
    """The problem, after some worked examples."""
    common, (problem,) = few_shot_texts(shots, 1, seed)
    text = f"{common}Question: {problem.question}\nLet us try several ideas, step by step."
    return Thought((), tuple(encoder.encode(text)))


class TreeSearch:
    """One search per backend: levels of proposals, scored and pruned."""

    def __init__(self, args: argparse.Namespace, root: Thought, encoder: Encoder) -> None:
        self.args = args
        self.root = root
        self.encoder = encoder
        self.thoughts: dict[str, list[Thought]] = {}
        self.kept: dict[str, list[Thought]] = {}

    def __call__(self, session: Session) -> None:
        args = self.args
        thoughts, kept, frontier = [], [], [self.root]
        session.warm_up(Request("problem", self.root.ids, 1))
        for level in range(1, args.depth + 1):
            proposals = propose(frontier, self.encoder, args.branching, args.max_new_tokens)
            completions = session.serve(f"level {level}", [request for _, request in proposals])
            grown = [
                grow(child, completion)
                for (child, _), completion in zip(proposals, completions, strict=True)
            ]
            frontier = best(grown, args.keep)
            thoughts += grown
            kept += frontier
        self.thoughts[session.run.backend] = thoughts
        self.kept[session.run.backend] = kept

    def winner(self, backend: str) -> Thought:
        """The best thought of the last level."""
        deepest = [t for t in self.kept[backend] if len(t.path) == self.args.depth]
        return best(deepest, 1)[0]

    def as_json(self, run: BackendRun) -> dict[str, object]:
        """The tree of one backend."""
        kept = {thought.path for thought in self.kept[run.backend]}
        return {
            "winner": self.winner(run.backend).name,
            "tree": [
                {"thought": t.name, "score": t.score, "tokens": len(t.ids), "kept": t.path in kept}
                for t in self.thoughts[run.backend]
            ],
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the workload on every backend, compare, and report."""
    parser = make_parser()
    args = parser.parse_args(argv)
    check_common_options(parser, args)
    console, encoder = Console(), encoder_for(args)
    root = make_root(encoder, args.shots, args.seed)
    sizes = level_sizes(args.branching, args.keep, args.depth)
    title = f"tree of thoughts: a problem of {len(root.ids):,} tokens, levels of {sizes} thoughts"
    console.print(f"{title} of {args.max_new_tokens} tokens", soft_wrap=True)
    search = TreeSearch(args, root, encoder)
    expected = sum(sizes) * args.max_new_tokens
    sampling = sampling_of(args, always_logprobs=True)
    runs = run_backends(args, sampling, expected, search, console)

    first = runs[0].backend
    console.print(f"the tree of {first} (* kept, best leaf {search.winner(first).name}):")
    tree = draw_tree(search.thoughts[first], search.kept[first], encoder)
    console.print(tree, markup=False, highlight=False, soft_wrap=True)
    size = {
        "name": "tree_of_thought",
        "branching": args.branching,
        "depth": args.depth,
        "keep": args.keep,
        "levels": sizes,
        "problem_tokens": len(root.ids),
        "max_new_tokens": args.max_new_tokens,
        "seed": args.seed,
        "text": encoder.is_text,
    }
    return report(args, title, size, runs, encoder, search.as_json, console)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GenerationError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
