#!/usr/bin/env python3
"""Is planning hidden? A profile of a decoding batch that requests join and leave, as a picture.

A server is started, a batch decodes, SGLang's own profiler (`/start_profile`) records some steps,
and the time that the GPU idles before steps with a new plan is compared with that before others.

    python scripts/checks/trace_overlap.py --shape llama3-8b --out out/overlap.png \\
        -- --mem-fraction-static 0.85
    python scripts/checks/trace_overlap.py --trace out/overlap/1700000000-TP-0.trace.json.gz

With --backend flashinfer (or another stock backend) the same steps say what joining and leaving
cost without codec.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from library import results
from library.options import parser_of, positive, positive_number
from library.servers.backends import has_gpu
from library.servers.clients import GenerationError, ServerClient
from library.servers.launch import add_model_options, check_model, make_launch
from library.servers.models import vocabulary_of
from library.servers.server import ServerFailed, leave_on_sigterm, running_server
from library.servers.workload import tree_of
from tracing import timeline
from tracing.chrome_trace import Profile, read_profile
from tracing.joining import Recording, needed_tokens, record
from tracing.overlap import Handover, describe, handovers, summary


def make_parser() -> argparse.ArgumentParser:
    """The command line; what follows `--` goes to the server."""
    parser = parser_of(__doc__, usage="%(prog)s [options] [-- SGLANG_FLAGS ...]")
    where = parser.add_mutually_exclusive_group(required=True)
    add_model_options(where)
    where.add_argument("--trace", type=Path, metavar="FILE", help="a profile written earlier")
    add = parser.add_argument
    add("--backend", default="codec", help="of the server (default: codec)")
    tree = "requests that decode throughout: nodes per level _ tokens per node"
    add("--tree", type=tree_of, default="1,32_8192,256", help=f"{tree} (default: 1,32_8192,256)")
    add("--steps", type=positive, default=64, help="forward passes to record (default: 64)")
    add("--joins", type=positive, default=4, help="requests that join and leave (default: 4)")
    add("--out", type=Path, default=Path("out/overlap.png"), metavar="OUT.png")
    add("--json", type=Path, metavar="OUT.json", help="every step and the summary")
    logs = "server log, profile, dummy model (default: out/overlap)"
    add("--logs", type=Path, default=Path("out/overlap"), metavar="DIR", help=logs)
    limit = "seconds for the server to start, and for the profile to be written (default: 300)"
    add("--limit", type=positive_number, default=300.0, metavar="S", help=limit)
    return parser


def make_trace(args: argparse.Namespace, flags: Sequence[str]) -> Path:
    """Start a server and record a profile."""
    tree = replace(args.tree, steps=needed_tokens(args.steps, flags))
    recording = Recording(tree, args.steps, args.joins, has_gpu(), args.limit)
    launch = make_launch(args, args.logs, flags)
    start = running_server(args.backend, launch.all_flags, args.logs, start_limit_s=args.limit)
    with start as server:
        print(f"{args.backend}: the server is up after {server.startup_s:.0f} s")
        client = ServerClient(server.url, timeout_s=args.limit)
        return record(client, recording, vocabulary_of(launch.model), args.logs)


def as_json(
    args: argparse.Namespace, words: Sequence[str], profile: Profile, found: list[Handover]
) -> dict[str, Any]:
    """Everything that was found; a profile of an earlier run does not say what it ran on."""
    head = results.head(profile.gpu) | {"backend": args.backend, "tree": args.tree.tree}
    if args.trace:
        head |= dict.fromkeys(("versions", "commit", "backend", "tree"))
    head["command"] = results.command(words)
    return head | {"summary": summary(found), "steps": [asdict(step) for step in found]}


def main(argv: Sequence[str] | None = None) -> int:
    """Record or read a profile, say what it shows, draw it."""
    words = list(sys.argv[1:] if argv is None else argv)
    own, flags = results.split_words(words)
    parser = make_parser()
    args = parser.parse_args(own)
    if flags and args.trace:
        parser.error("SGLang's flags are for a server that this program starts: not with --trace")
    check_model(parser, args)
    if args.trace and not args.trace.is_file():
        parser.error(f"--trace: {args.trace} does not exist")
    path = args.trace or make_trace(args, flags)
    try:
        profile = read_profile(path)
    except (OSError, EOFError, ValueError, KeyError) as error:
        parser.error(f"{path}: {error}")
    found = handovers(profile)
    print(f"profile: {path}")
    print(describe(summary(found)))
    what = args.trace.name if args.trace else f"{args.backend}, tree {args.tree.tree}"
    title = f"What the host does while the GPU works ({profile.gpu}, {what})"
    timeline.draw(profile, found, title, args.out)
    print(f"picture: {args.out}")
    if args.json:
        results.write(as_json(args, words, profile, found), args.json)
        print(f"results: {args.json}")
    return 0


if __name__ == "__main__":
    leave_on_sigterm()
    sys.stdout.reconfigure(line_buffering=True)
    try:
        sys.exit(main())
    except (GenerationError, ServerFailed) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
