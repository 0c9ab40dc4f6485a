#!/usr/bin/env python3
"""Is planning hidden? A profile of a decoding batch that requests join and leave, as a picture.

A server is started (or --url names one on this machine), a batch decodes, SGLang's own profiler
(`/start_profile`) records some steps, and the time that the GPU idles before steps with a new plan
is compared with that before other steps.

    python scripts/checks/trace_overlap.py --shape llama3-8b --out out/overlap.png \\
        -- --mem-fraction-static 0.85
    python scripts/checks/trace_overlap.py --trace out/overlap/1700000000-TP-0.trace.json.gz

With --backend flashinfer (or another stock backend) the same steps say what joining and leaving
cost without codec. `scripts/checks/tracing/chrome_trace.py` says how planning is found.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from library.options import positive, positive_number
from library.results import split_words, without_paths
from library.servers.clients import GenerationError, ServerClient
from library.servers.engines import has_gpu
from library.servers.launch import add_model_options, check_model, make_launch
from library.servers.models import read_config
from library.servers.server import ServerFailed, running_server
from library.servers.workload import Workload, parse_tree
from tracing import timeline
from tracing.chrome_trace import NoSteps, Profile, read_profile
from tracing.joining import Recording, needed_steps, record
from tracing.overlap import Handover, describe, handovers, summary


def parse_workload(text: str) -> Workload:
    """A tree in the short notation."""
    try:
        return parse_tree(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def make_parser() -> argparse.ArgumentParser:
    """The command line; what follows `--` goes to the server."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] [-- SGLANG_FLAGS ...]",
    )
    where = parser.add_mutually_exclusive_group(required=True)
    add_model_options(where)
    where.add_argument("--url", help="a running server, which writes its profile on this machine")
    where.add_argument("--trace", type=Path, metavar="FILE", help="a profile written earlier")
    parser.add_argument("--backend", default="codec", help="of the server (default: codec)")
    parser.add_argument(
        "--tree",
        type=parse_workload,
        default="1,32_8192,256",
        help="requests that decode throughout: nodes per level _ tokens per node"
        " (default: 1,32_8192,256)",
    )
    parser.add_argument(
        "--steps", type=positive, default=64, help="forward passes to record (default: 64)"
    )
    parser.add_argument(
        "--joins", type=positive, default=4, help="requests that join and leave (default: 4)"
    )
    parser.add_argument(
        "--stack",
        action="store_true",
        help="record Python functions too: finds planning in any version, but slows the host",
    )
    parser.add_argument("--out", type=Path, default=Path("out/overlap.png"), metavar="OUT.png")
    parser.add_argument("--json", type=Path, metavar="OUT.json", help="every step and the summary")
    parser.add_argument(
        "--logs",
        type=Path,
        default=Path("out/overlap"),
        metavar="DIR",
        help="server log, profile, dummy model (default: out/overlap)",
    )
    parser.add_argument(
        "--limit",
        type=positive_number,
        default=300.0,
        metavar="S",
        help="seconds for the server to start, and for the profile to be written (default: 300)",
    )
    return parser


@contextmanager
def serving(args: argparse.Namespace, flags: Sequence[str]) -> Iterator[tuple[ServerClient, str]]:
    """A client, and the model it serves."""
    if args.url:
        client = ServerClient(args.url, timeout_s=args.limit)
        yield client, client.info()["model_path"]
        return
    launch = make_launch(args, args.logs, flags)
    start = running_server(args.backend, launch.all_flags, args.logs, start_limit_s=args.limit)
    with start as server:
        print(f"{args.backend}: the server is up after {server.startup_s:.0f} s")
        yield ServerClient(server.url, timeout_s=args.limit), launch.model


def make_trace(args: argparse.Namespace, flags: Sequence[str]) -> Path:
    """Record a profile."""
    recording = Recording(
        tree=replace(args.tree, steps=needed_steps(args.steps)),
        steps=args.steps,
        joins=args.joins,
        stack=args.stack,
        gpu=has_gpu(),
        limit_s=args.limit,
    )
    with serving(args, flags) as (client, model):
        config = read_config(model)
        vocabulary = config.get("text_config", config)["vocab_size"]
        args.logs.mkdir(parents=True, exist_ok=True)
        return record(client, recording, vocabulary, args.logs)


def as_json(
    args: argparse.Namespace, words: Sequence[str], profile: Profile, found: list[Handover]
) -> dict[str, Any]:
    """Everything that was found; a profile of an earlier run does not say what it ran on."""
    # torch takes seconds to import, and only this needs it
    from library.results import commit, plain, versions

    return plain(
        {
            "gpu": profile.gpu,
            "versions": None if args.trace else versions(),
            "commit": None if args.trace else commit(),
            "command": shlex.join(without_paths(["trace_overlap.py", *words])),
            "backend": None if args.trace else args.backend,
            "tree": None if args.trace else args.tree.tree,
            "plans_found_by": profile.found_plans_by,
            "summary": summary(found),
            "steps": [handover.as_json() for handover in found],
        }
    )


def _title(args: argparse.Namespace, profile: Profile) -> str:
    what = args.trace.name if args.trace else f"{args.backend}, tree {args.tree.tree}"
    return f"What the host does while the GPU works ({profile.gpu}, {what})"


def main(argv: Sequence[str] | None = None) -> int:
    """Record or read a profile, say what it shows, draw it."""
    words = list(sys.argv[1:] if argv is None else argv)
    own, flags = split_words(words)
    parser = make_parser()
    args = parser.parse_args(own)
    if flags and (args.url or args.trace):
        parser.error("SGLang's flags are for a server that this program starts")
    check_model(parser, args)
    if args.trace and not args.trace.is_file():
        parser.error(f"--trace: {args.trace} does not exist")
    path = args.trace or make_trace(args, flags)
    try:
        profile = read_profile(path)
    except (OSError, EOFError, ValueError, KeyError) as error:
        if isinstance(error, NoSteps) or args.trace:
            parser.error(f"{path}: {error}")
        raise
    found = handovers(profile)
    print(f"profile: {path}")
    print(describe(summary(found), profile.found_plans_by))
    timeline.draw(profile, found, _title(args, profile), args.out)
    print(f"picture: {args.out}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(as_json(args, words, profile, found), indent=1) + "\n")
        print(f"results: {args.json}")
    return 0


def _end(number: int, _frame: object) -> None:
    # through the `with` block that ends the server
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.stdout.reconfigure(line_buffering=True)
    try:
        sys.exit(main())
    except (GenerationError, ServerFailed) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
