"""The command line of `bench_serving.py`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from library.options import parse_backends, parser_of, positive, positive_number
from library.servers.launch import add_draft_options, add_model_options, check_model
from library.servers.workload import (
    ARRIVALS,
    CHURN,
    NAMES,
    STEADY,
    Arrivals,
    Workload,
    short,
    tree_of,
    with_steps,
)

from serving.jobs import DEFAULT, AnyWorkload, Variant, parse_variant
from serving.places import parse_gpus

SIZES = (32, 16, 2048, 256, 256)
RATES = (16.0, 24.0, 40.0)
ITL_LIMIT_MS = 50.0


def parse_workload(text: str) -> str:
    """The name of a workload, or a tree."""
    if text not in NAMES:
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


def parse_sizes(text: str) -> tuple[int, ...]:
    """Five whole numbers separated by commas or an `x`."""
    sizes = tuple(positive(word) for word in text.replace("x", ",").split(","))
    if len(sizes) != len(SIZES):
        raise argparse.ArgumentTypeError(f"{text!r}: needs {len(SIZES)} numbers")
    return sizes


def parse_rates(text: str) -> tuple[float, ...]:
    """Numbers above 0 separated by commas, each once."""
    return tuple(dict.fromkeys(positive_number(word) for word in text.split(",")))


def make_parser(description: str) -> argparse.ArgumentParser:
    """The command line; what follows `--` goes to the servers."""
    parser = parser_of(description, usage="%(prog)s [options] [-- SGLANG_FLAGS ...]")
    group = parser.add_argument_group("what to serve")
    add_model_options(group.add_mutually_exclusive_group(required=True))
    add_draft_options(group.add_argument)
    _add_what(group.add_argument)
    _add_arrivals(parser.add_argument_group("churn and arrivals, by sglang.bench_serving"))
    _add_results(parser.add_argument_group("measurement and results").add_argument)
    return parser


def _add_what(add: Callable[..., object]) -> None:
    backends = "codec,fa3,flashinfer,triton"
    about = "attention backends, each with a server of its own; PREFILL/DECODE names two, as in"
    about += f" fa3/codec (default: {backends})"
    add("--backends", type=parse_backends, default=backends, metavar="A,B,...", help=about)
    about = f"out of {', '.join(NAMES)}, or trees of prompts as 1,8_64,16: nodes per level _ tokens"
    about += " per node; the last level's requests decode together (default: all)"
    what = {"nargs": "+", "default": list(NAMES), "metavar": "NAME"}
    add("--workloads", type=parse_workload, **what, help=about)
    about = "output tokens of a request (default: 128; rollouts 512)"
    add("--steps", type=parse_steps, default={}, metavar="N | NAME=N,...", help=about)
    about = "flags of the servers besides those after --, under a name, as in"
    about += " mixed=--enable-mixed-chunk; may be repeated, each is a server per backend"
    about += f" (default: {DEFAULT}, without any)"
    form = {"action": "append", "default": [], "metavar": "NAME=FLAGS"}
    add("--variant", type=parse_variant, dest="variants", **form, help=about)
    about = "all workloads with every variant (default: those that decode together with the first)"
    add("--every-variant", action="store_true", help=about)
    about = (
        "as many servers side by side, each on its GPU and its share of the cores: 0,1,2 or all;"
    )
    about += " 0+1,2+3 gives each server two (default: one server after the other)"
    add("--gpus", type=parse_gpus, metavar="I,J,...", help=about)
    add("--seed", type=int, default=0, help="of prompts and arrivals (default: 0)")


def _add_arrivals(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    about = "arrivals per second in the mean, at random times, a row for each (default:"
    about += f" {','.join(map('{:g}'.format, RATES))}; churn has {CHURN.rate})"
    add("--request-rates", type=parse_rates, default=RATES, metavar="R,S,...", help=about)
    about = "groups, prompts of a group, and tokens of the group's common part, of a prompt's own"
    about += " and of an answer (default: 32x16,2048,256,256)"
    sizes = "GROUPSxPROMPTS,SYSTEM,QUESTION,OUTPUT"
    add("--arrivals", type=parse_sizes, default=SIZES, metavar=sizes, help=about)
    about = "runs of a row, each with other prompts and arrivals; the row has their medians"
    add("--repeats", type=positive, default=3, metavar="N", help=f"{about} (default: 3)")
    about = "goodput is what is served at this mean time between a request's tokens or less"
    limit = {"type": positive_number, "default": ITL_LIMIT_MS, "metavar": "MS"}
    add("--itl-limit", **limit, help=f"{about} (default: {ITL_LIMIT_MS:g})")


def _add_results(add: Callable[..., object]) -> None:
    add("--json", type=Path, required=True, metavar="OUT.json", help="written after every row")
    about = "go on with the file: rows of the same commit and settings are not measured again"
    add("--append", action="store_true", help=about)
    add("--plot", type=Path, metavar="OUT.png", help="draw all rows of the file")
    about = "logs of the servers, dummy model (default: out/serving)"
    add("--logs", type=Path, default=Path("out/serving"), metavar="DIR", help=about)
    about = "for the bound of each row (default: a device copy is measured, if there is a GPU)"
    add("--bandwidth", type=positive_number, metavar="TB/s", help=about)
    about = "tokens per chunk of the stream of requests that decode together (default: batch / 16,"
    about += " so that SGLang's HTTP process keeps up with the GPU)"
    add("--stream-interval", type=positive, default=0, metavar="N", help=about)
    about = "seconds that a server may take to start (default: 300)"
    add("--start-limit", type=positive_number, default=300.0, metavar="S", help=about)
    about = "start no row after so many seconds; --append measures the rest later"
    forever = float("inf")
    add("--time-limit", type=positive_number, default=forever, metavar="S", help=about)


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what cannot run, before a server is started."""
    args.variants = args.variants or [Variant(DEFAULT)]
    if args.json.exists() and not args.append:
        parser.error(f"{args.json} exists: --append goes on with it, or name another file")
    check_model(parser, args)
    names = [variant.name for variant in args.variants]
    if len(set(names)) < len(names):
        parser.error(f"--variant names {', '.join(names)}: name each once")
    known = {"", *args.workloads, *(w.name for w in select(args))}
    if unknown := sorted(set(args.steps) - known):
        parser.error(f"--steps names {', '.join(unknown)}, which is no selected workload")


def select(args: argparse.Namespace) -> list[AnyWorkload]:
    """The workloads in the order in which they are measured: first those that bounds need."""
    chosen: list[AnyWorkload] = []
    for name in dict.fromkeys(args.workloads):
        if name == CHURN.name:
            chosen.append(CHURN)
        elif name == ARRIVALS:
            chosen += [
                Arrivals(f"{ARRIVALS}-{rate:g}", rate, *args.arrivals)
                for rate in args.request_rates
            ]
        else:
            chosen.append(with_steps(STEADY.get(name) or tree_of(name), args.steps))
    batches = sorted({w.batch for w in chosen if isinstance(w, Workload)})
    return [*(with_steps(short(batch), args.steps) for batch in batches), *chosen]
