"""The command line of `churn.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

from library.options import parser_of, positive, positive_number
from library.servers.launch import add_model_options


def make_parser(description: str) -> argparse.ArgumentParser:
    epilog = "What stands after `--` are flags of the server that this starts."
    parser = parser_of(description, epilog=epilog)
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
