#!/usr/bin/env python3
"""Churn: a server under requests that join and leave at every step, and what is left afterwards.

A seeded traffic of few-shot groups, trees, growing prefixes, twins, strangers, and agents that come
back under their old request id; answers of one token and long ones; clients that abort or hang up;
between two rounds the cache is flushed. A server that this starts has a KV pool so small that
requests are retracted, checks codec's debug invariant at every plan and its own memory in every
iteration. Exit status 0 if no check failed.

    python scripts/serve/churn.py --shape llama3-8b --minutes 10 --stock-test --json out/churn.json
    python scripts/serve/churn.py --model MODEL --requests 200 --round 50 -- --page-size=16
    python scripts/serve/churn.py --shape small --minutes 2 --stock-test --json FILE -- --pp-size=2
    python scripts/serve/churn.py --shape llama3-8b --minutes 10 --stock-test --json FILE -- \\
        --speculative-algorithm=NGRAM --speculative-num-draft-tokens=4 \\
        --speculative-ngram-max-bfs-breadth=1 --speculative-ngram-min-bfs-breadth=1
    python scripts/serve/churn.py --url http://127.0.0.1:30000 --minutes 5
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from churning.run import Run
from churning.stock_test import POOL, VOCABULARY
from library import results
from library.options import parser_of, positive, positive_number
from library.servers.backends import gpu_name
from library.servers.clients import GenerationError, ServerClient
from library.servers.launch import add_model_options, make_launch
from library.servers.models import vocabulary_of
from library.servers.server import ServerFailed, leave_on_sigterm, running_server

# the debug invariant at every plan; SGLang's memory check in every iteration
VARIABLES = {"SGLANG_CODEC_CHECK_SHARING": "1", "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1"}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    epilog = "What stands after `--` are flags of the server that this starts."
    parser = parser_of(__doc__, epilog=epilog)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="a running server; it stays up")
    add_model_options(where)
    parser.add_argument("--backend", default="codec", help="of the server (default: codec)")
    parser.add_argument("--start-limit", type=positive_number, default=600, metavar="SECONDS")
    parser.add_argument("--logs", type=Path, default=Path("out/churn"), help="default: out/churn")

    add = parser.add_argument_group("how much").add_argument
    add("--minutes", type=positive_number, help="default: 10 without --requests")
    add("--requests", type=positive, help="end after so many")
    add("--round", type=positive, default=500, help="requests between flushes (default: 500)")
    add("--concurrency", type=positive, default=32, help="clients (default: 32)")

    add = parser.add_argument_group("traffic").add_argument
    add("--seed", type=int, default=0, help="default: 0")
    add("--prompt", type=positive, default=400, help="longest (default: 400)")
    add("--output", type=positive, default=100, help="longest (default: 100)")
    add("--vocabulary", type=positive, help="token ids (default: the model's)")

    add = parser.add_argument_group("checks").add_argument
    stock = "SGLang's run_radix_attention_test first; needs 32,000 token ids and room for prompts"
    add("--stock-test", action="store_true", help=f"{stock} of about 4,000")
    alone = "serve N finished requests again, one by one, and compare the tokens (default: 16)"
    add("--alone", type=int, default=16, metavar="N", help=alone)
    add("--require-equal", action="store_true", help="fail if they differ; for fp32")
    add("--json", type=Path, metavar="OUT.json", help="write the results here")
    return parser


def server_flags(args: argparse.Namespace) -> list[str]:
    """A pool for a third of what all clients may want, and a scheduler that hopes for the best."""
    pool = args.concurrency * (args.prompt + args.output) // 3
    longest = POOL if args.stock_test else args.prompt + args.output
    return [
        f"--max-total-tokens={max(pool, 2 * longest)}",
        f"--max-running-requests={args.concurrency}",
        "--schedule-conservativeness=0.05",
        "--chunked-prefill-size=256",
    ]


def churn(args: argparse.Namespace, words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The results, and the flags of the server if it was started here."""
    with ExitStack() as stack:
        if args.url:
            model = ServerClient(args.url).info()["model_path"]
            url, log, flags = args.url.rstrip("/"), None, []
        else:
            for name, value in VARIABLES.items():
                os.environ.setdefault(name, value)
            launch = make_launch(args, args.logs, [*server_flags(args), *words])
            server = stack.enter_context(
                running_server(
                    args.backend, launch.all_flags, args.logs, start_limit_s=args.start_limit
                )
            )
            model, url, log = launch.model, server.url, server.log
            flags = results.without_paths(launch.flags)
        vocabulary = args.vocabulary or vocabulary_of(model)
        if args.stock_test and vocabulary < VOCABULARY:
            raise GenerationError(
                f"--stock-test needs {VOCABULARY} token ids, this model has {vocabulary}"
            )
        return Run(args, url, vocabulary, log).run(), flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run it, say what held, write it down."""
    own, words = results.split_words(list(sys.argv[1:] if argv is None else argv))
    parser = make_parser()
    args = parser.parse_args(own)
    if args.url and words:
        parser.error("flags after -- are for a server that this starts: not with --url")
    try:
        found, flags = churn(args, words)
    except (GenerationError, ServerFailed, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    variables = {} if args.url else {name: os.environ[name] for name in VARIABLES}
    how = {"server_flags": flags, "server_variables": variables}
    for check in found["checks"]:
        mark = {True: "ok", False: "FAILED", None: "unknown"}[check["holds"]]
        print(f"{mark:8}{check['name']}: {check['seen']}")
    if args.json:
        results.write(results.head(gpu_name()) | how | found, args.json)
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    leave_on_sigterm()
    sys.exit(main())
