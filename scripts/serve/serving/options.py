"""The command line of `bench_serving.py`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from library.options import parse_backends, positive, positive_number
from library.servers.launch import add_model_options, check_model
from library.servers.workload import (
    DEFAULT,
    STEADY,
    STOCK,
    StockWorkload,
    Workload,
    churn,
    parse_tree,
    random_ids,
    short,
    with_steps,
)

CHURN = (16, 16, 2048, 128, 256)
RANDOM_IDS = (256, 1024, 128)


def parse_workloads(text: str) -> list[str]:
    """Names of workloads, or trees, separated by commas that are not a tree's own."""
    names: list[str] = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        # a tree such as 1,8_64,16 holds commas itself: digits go on with the word before
        if names and word[0].isdigit() and _unfinished(names[-1], word):
            names[-1] += f",{word}"
        else:
            names.append(word)
    if not names or len(set(names)) != len(names):
        raise argparse.ArgumentTypeError(f"{text!r}: name each workload once")
    for name in names:
        if name not in (*STEADY, *STOCK):
            try:
                parse_tree(name)
            except ValueError as error:
                raise argparse.ArgumentTypeError(str(error)) from error
    return names


def _unfinished(tree: str, word: str) -> bool:
    nodes, underscore, tokens = tree.partition("_")
    if not nodes.replace(",", "").isdigit():
        return False
    return not underscore or ("_" not in word and tokens.count(",") < nodes.count(","))


def parse_steps(text: str) -> dict[str, int]:
    """`64` for all, or `rollouts=256,single=64`; the key of the former is empty."""
    steps: dict[str, int] = {}
    for word in text.split(","):
        name, equals, number = word.rpartition("=")
        if equals and not name:
            raise argparse.ArgumentTypeError(f"{word!r}: give a number, or WORKLOAD=NUMBER")
        steps[name.strip()] = positive(number.strip())
    return steps


def parse_sizes(text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas or an `x`."""
    return tuple(positive(word) for word in text.replace("x", ",").split(","))


def make_parser(description: str) -> argparse.ArgumentParser:
    """The command line; what follows `--` goes to the servers."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] [-- SGLANG_FLAGS ...]",
    )
    what = parser.add_argument_group("what to serve")
    add_model_options(what.add_mutually_exclusive_group(required=True))
    what.add_argument(
        "--backends",
        type=parse_backends,
        default=["codec", "fa3", "flashinfer", "triton"],
        metavar="A,B,...",
        help="attention backends, one server after the other; PREFILL/DECODE names two, as in"
        " fa3/codec (default: codec,fa3,flashinfer,triton)",
    )
    what.add_argument(
        "--workloads",
        type=parse_workloads,
        default=list(DEFAULT),
        metavar="A,B,...",
        help=f"out of {', '.join((*STEADY, *STOCK))}, or trees of prompts as 1,8_64,16: nodes per"
        " level _ tokens per node; the last level's requests decode together"
        " (default: all but random-ids)",
    )
    what.add_argument(
        "--steps",
        type=parse_steps,
        default={},
        metavar="N | NAME=N,...",
        help="output tokens of a request (default: 128; rollouts 512)",
    )
    what.add_argument("--seed", type=int, default=0, help="of prompts and arrivals (default: 0)")
    _add_stock_options(parser)
    _add_result_options(parser)
    return parser


def _add_stock_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("rows of sglang.bench_serving (churn, random-ids)")
    group.add_argument(
        "--request-rate",
        type=positive_number,
        default=16.0,
        metavar="R",
        help="requests per second in the mean, at random times (default: 16)",
    )
    group.add_argument(
        "--churn",
        type=parse_sizes,
        default=CHURN,
        metavar="GROUPSxPROMPTS,SYSTEM,QUESTION,OUTPUT",
        help="groups, prompts of a group, and tokens of the group's common part, of a prompt's own"
        " and of an answer (default: 16x16,2048,128,256)",
    )
    group.add_argument(
        "--random-ids",
        type=parse_sizes,
        default=RANDOM_IDS,
        metavar="REQUESTS,PROMPT,OUTPUT",
        help="requests, and the most tokens of a prompt and of an answer; half of that is the"
        " least (default: 256,1024,128)",
    )


def _add_result_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("measurement and results")
    group.add_argument(
        "--json", type=Path, required=True, metavar="OUT.json", help="written after every row"
    )
    group.add_argument(
        "--append",
        action="store_true",
        help="go on with the file: rows of the same commit and settings are not measured again",
    )
    group.add_argument("--plot", type=Path, metavar="OUT.png", help="draw all rows of the file")
    group.add_argument(
        "--logs",
        type=Path,
        default=Path("out/serving"),
        metavar="DIR",
        help="logs of the servers, dummy model (default: out/serving)",
    )
    group.add_argument(
        "--bandwidth",
        type=positive_number,
        metavar="TB/s",
        help="for the bound of each row (default: a device copy is measured, if there is a GPU)",
    )
    group.add_argument(
        "--stream-interval",
        type=positive,
        default=0,
        metavar="N",
        help="tokens per chunk of the stream (default: batch / 16, so that SGLang's HTTP process"
        " keeps up with the GPU)",
    )
    group.add_argument(
        "--start-limit",
        type=positive_number,
        default=300.0,
        metavar="S",
        help="seconds that a server may take to start (default: 300)",
    )
    group.add_argument(
        "--time-limit",
        type=positive_number,
        default=float("inf"),
        metavar="S",
        help="start no row after so many seconds; --append measures the rest later",
    )


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what cannot run, before a server is started."""
    if args.json.exists() and not args.append:
        parser.error(f"{args.json} exists: --append goes on with it, or name another file")
    check_model(parser, args)
    for name, count in (("churn", len(CHURN)), ("random_ids", len(RANDOM_IDS))):
        if len(getattr(args, name)) != count:
            parser.error(f"--{name.replace('_', '-')} needs {count} numbers")
    known = {"", *args.workloads, *(w.name for w in select(args))}
    if unknown := sorted(set(args.steps) - known):
        parser.error(f"--steps names {', '.join(unknown)}, which is no selected workload")


def select(args: argparse.Namespace) -> list[Workload | StockWorkload]:
    """The workloads in the order in which they are measured: first those that bounds need."""
    stock: dict[str, Any] = {
        "churn": (churn, args.churn),
        "random-ids": (random_ids, args.random_ids),
    }
    chosen: list[Workload | StockWorkload] = []
    for name in args.workloads:
        if name in stock:
            make, sizes = stock[name]
            chosen.append(make(*sizes))
        else:
            workload = STEADY[name] if name in STEADY else parse_tree(name)
            chosen.append(with_steps(workload, args.steps))
    batches = sorted({w.batch for w in chosen if isinstance(w, Workload)})
    return [*(with_steps(short(batch), args.steps) for batch in batches), *chosen]
