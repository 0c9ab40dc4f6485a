"""The command-line options that both workloads have."""

from __future__ import annotations

import argparse
from pathlib import Path

from library.options import add_engine_option, parse_backends


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Where to run, what to compare, and where the results go."""
    add = parser.add_argument_group("where to run").add_argument
    model = "model directory or Hugging Face name: an engine is started in this process for every"
    add("--model", help=f"{model} backend. With --url: only for the tokenizer")
    backend = "attention backends to compare, the first is the reference; PREFILL/DECODE names two"
    backend += " for one engine, as in fa3/codec (default: codec)"
    default = {"default": ["codec"], "metavar": "A,B,..."}
    add("--backend", type=parse_backends, **default, help=backend)
    url = "a running SGLang server instead of an engine; repeat it to compare several"
    add("--url", action="append", help=url)
    add_engine_option(parser)

    add = parser.add_argument_group("tokens").add_argument
    add("--seed", type=int, default=0, help="of the problems (default: 0)")
    logprobs = "ask for the two most likely tokens everywhere, to tell a tie from an error"
    add("--logprobs", action="store_true", help=logprobs)
    gap = "largest distance of the top two logits that rounding may turn round; 0.13 suits bf16,"
    gap += " whose steps are 0.125 for logits of 16 to 32 (default: 0.13)"
    add("--tie-gap", type=float, default=0.13, metavar="X", help=gap)

    add = parser.add_argument_group("output").add_argument
    add("--json", type=Path, metavar="OUT.json", help="write all results here")
    plot = "draw the results here, and a codec forest and its plan beside it"
    add("--plot", type=Path, metavar="OUT.png", help=plot)
    equal = "exit with 1 if a backend's tokens differ from the reference's by more than a tie"
    add("--require-equal", action="store_true", help=equal)


def check_common_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse combinations that cannot run."""
    if not args.url and not args.model:
        parser.error("nothing to run on: give --model PATH or --url http://host:port")
    if args.url and len(set(args.url)) != len(args.url):
        parser.error(f"--url names a server twice: {' '.join(args.url)}")
    if args.url and args.engine:
        parser.error("--engine configures an engine in this process: not with --url")
