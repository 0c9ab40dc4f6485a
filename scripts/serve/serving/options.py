"""The command line of `bench_serving.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

from library.options import parse_backends, parser_of, positive, positive_number
from library.servers.launch import add_model_options, check_model
from library.servers.workload import (
    CHURN,
    STEADY,
    StockWorkload,
    Workload,
    churn,
    short,
    tree_of,
    with_steps,
)

CHURN_SIZES = (16, 16, 2048, 128, 256)


def parse_workload(text: str) -> str:
    """The name of a workload, or a tree."""
    if text not in (*STEADY, CHURN):
        tree_of(text)
    return text


def parse_steps(text: str) -> dict[str, int]:
    """`64` for all, or `rollouts=256,single=64`; the key of the former is empty."""
    steps: dict[str, int] = {}
    for word in text.split(","):
        name, equals, number = word.rpartition("=")
        if equals and not name:
            raise argparse.ArgumentTypeError(f"{word!r}: give a number, or WORKLOAD=NUMBER")
        steps[name.strip()] = positive(number.strip())
    return steps


def parse_churn(text: str) -> tuple[int, ...]:
    """Five whole numbers separated by commas or an `x`."""
    sizes = tuple(positive(word) for word in text.replace("x", ",").split(","))
    if len(sizes) != len(CHURN_SIZES):
        raise argparse.ArgumentTypeError(f"{text!r}: needs {len(CHURN_SIZES)} numbers")
    return sizes


def make_parser(description: str) -> argparse.ArgumentParser:
    """The command line; what follows `--` goes to the servers."""
    parser = parser_of(description, usage="%(prog)s [options] [-- SGLANG_FLAGS ...]")
    group = parser.add_argument_group("what to serve")
    add_model_options(group.add_mutually_exclusive_group(required=True))
    add, backends = group.add_argument, "codec,fa3,flashinfer,triton"
    about = "attention backends, one server after the other; PREFILL/DECODE names two, as in"
    about += f" fa3/codec (default: {backends})"
    add("--backends", type=parse_backends, default=backends, metavar="A,B,...", help=about)
    known = (*STEADY, CHURN)
    about = f"out of {', '.join(known)}, or trees of prompts as 1,8_64,16: nodes per level _ tokens"
    about += " per node; the last level's requests decode together (default: all)"
    what = {"nargs": "+", "default": list(known), "metavar": "NAME"}
    add("--workloads", type=parse_workload, **what, help=about)
    about = "output tokens of a request (default: 128; rollouts 512)"
    add("--steps", type=parse_steps, default={}, metavar="N | NAME=N,...", help=about)
    add("--seed", type=int, default=0, help="of prompts and arrivals (default: 0)")

    add = parser.add_argument_group("churn, by sglang.bench_serving").add_argument
    about = "requests per second in the mean, at random times (default: 16)"
    add("--request-rate", type=positive_number, default=16.0, metavar="R", help=about)
    about = "groups, prompts of a group, and tokens of the group's common part, of a prompt's own"
    about += " and of an answer (default: 16x16,2048,128,256)"
    sizes = "GROUPSxPROMPTS,SYSTEM,QUESTION,OUTPUT"
    add("--churn", type=parse_churn, default=CHURN_SIZES, metavar=sizes, help=about)

    add = parser.add_argument_group("measurement and results").add_argument
    add("--json", type=Path, required=True, metavar="OUT.json", help="written after every row")
    about = "go on with the file: rows of the same commit and settings are not measured again"
    add("--append", action="store_true", help=about)
    add("--plot", type=Path, metavar="OUT.png", help="draw all rows of the file")
    about = "logs of the servers, dummy model (default: out/serving)"
    add("--logs", type=Path, default=Path("out/serving"), metavar="DIR", help=about)
    about = "for the bound of each row (default: a device copy is measured, if there is a GPU)"
    add("--bandwidth", type=positive_number, metavar="TB/s", help=about)
    about = "tokens per chunk of the stream (default: batch / 16, so that SGLang's HTTP process"
    about += " keeps up with the GPU)"
    add("--stream-interval", type=positive, default=0, metavar="N", help=about)
    about = "seconds that a server may take to start (default: 300)"
    add("--start-limit", type=positive_number, default=300.0, metavar="S", help=about)
    about = "start no row after so many seconds; --append measures the rest later"
    forever = float("inf")
    add("--time-limit", type=positive_number, default=forever, metavar="S", help=about)
    return parser


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what cannot run, before a server is started."""
    if args.json.exists() and not args.append:
        parser.error(f"{args.json} exists: --append goes on with it, or name another file")
    check_model(parser, args)
    known = {"", *args.workloads, *(w.name for w in select(args))}
    if unknown := sorted(set(args.steps) - known):
        parser.error(f"--steps names {', '.join(unknown)}, which is no selected workload")


def select(args: argparse.Namespace) -> list[Workload | StockWorkload]:
    """The workloads in the order in which they are measured: first those that bounds need."""
    chosen: list[Workload | StockWorkload] = []
    for name in dict.fromkeys(args.workloads):
        if name == CHURN:
            chosen.append(churn(*args.churn))
        else:
            chosen.append(with_steps(STEADY.get(name) or tree_of(name), args.steps))
    batches = sorted({w.batch for w in chosen if isinstance(w, Workload)})
    return [*(with_steps(short(batch), args.steps) for batch in batches), *chosen]
