"""The command-line options that both workloads have."""

from __future__ import annotations

import argparse
from pathlib import Path

from library.options import parse_backends, parse_setting


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Where to run, what to compare, and where the results go."""
    where = parser.add_argument_group("where to run")
    where.add_argument(
        "--model",
        help="model directory or Hugging Face name: an engine is started in this process for"
        " every backend. With --url: only for the tokenizer",
    )
    where.add_argument(
        "--backend",
        type=parse_backends,
        default=["codec"],
        metavar="A,B,...",
        help="attention backends to compare, the first is the reference; PREFILL/DECODE names"
        " two for one engine, as in fa3/codec (default: codec)",
    )
    where.add_argument(
        "--url",
        action="append",
        metavar="URL",
        help="a running SGLang server instead of an engine; repeat it to compare several",
    )
    where.add_argument(
        "--engine",
        action="append",
        type=parse_setting,
        default=[],
        metavar="KEY=VALUE",
        help="any argument of sglang.Engine, as in --engine page_size=16 or --engine"
        " log_level=info; may be repeated",
    )
    where.add_argument(
        "--dump",
        type=Path,
        metavar="FILE",
        help="with --url: the SGLANG_CODEC_DUMP file of a codec server on this machine",
    )

    tokens = parser.add_argument_group("tokens")
    tokens.add_argument(
        "--token-ids",
        action="store_true",
        help="made-up token ids instead of text; automatic for a model without a tokenizer",
    )
    tokens.add_argument("--seed", type=int, default=0, help="of the problems (default: 0)")
    tokens.add_argument(
        "--stop-at-eos",
        action="store_true",
        help="let the model end early (default: every request generates --max-new-tokens)",
    )
    tokens.add_argument(
        "--logprobs",
        action="store_true",
        help="ask for the two most likely tokens everywhere, to tell a tie from an error",
    )
    tokens.add_argument(
        "--tie-gap",
        type=float,
        default=0.13,
        metavar="X",
        help="largest distance of the top two logits that rounding may turn round; 0.13 suits"
        " bf16, whose steps are 0.125 for logits of 16 to 32 (default: 0.13)",
    )

    output = parser.add_argument_group("output")
    output.add_argument("--json", type=Path, metavar="OUT.json", help="write all results here")
    output.add_argument(
        "--plot",
        type=Path,
        metavar="OUT.png",
        help="draw the results here, and a codec forest and its plan beside it",
    )
    output.add_argument(
        "--require-equal",
        action="store_true",
        help="exit with 1 if a backend's tokens differ from the reference's by more than a tie",
    )
    output.add_argument("--quiet", action="store_true", help="no progress bar")


def check_common_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse combinations that cannot run."""
    if not args.url and not args.model:
        parser.error("nothing to run on: give --model PATH or --url http://host:port")
    if args.url and len(set(args.url)) != len(args.url):
        parser.error(f"--url names a server twice: {' '.join(args.url)}")
    if args.url and args.engine:
        parser.error("--engine configures an engine in this process: not with --url")
    if args.dump and not args.url:
        parser.error("--dump is for --url: an engine in this process writes its own")
