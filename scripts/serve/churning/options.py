"""The command line of `churn.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

from library.options import positive, positive_number
from library.servers.models import SHAPES


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="What stands after `--` are flags of the server that this starts.",
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="a running server; it stays up")
    where.add_argument("--model", help="start a server with this model")
    where.add_argument(
        "--shape", choices=tuple(SHAPES), help="start a server with dummy weights of this shape"
    )
    parser.add_argument("--backend", default="codec", help="of the server (default: codec)")
    parser.add_argument("--start-limit", type=positive_number, default=600, metavar="SECONDS")
    parser.add_argument("--logs", type=Path, default=Path("out/churn"), help="default: out/churn")

    much = parser.add_argument_group("how much")
    much.add_argument("--minutes", type=positive_number, help="default: 10 without --requests")
    much.add_argument("--requests", type=positive, help="end after so many")
    much.add_argument(
        "--round", type=positive, default=500, help="requests between flushes (default: 500)"
    )
    much.add_argument("--concurrency", type=positive, default=32, help="clients (default: 32)")

    traffic = parser.add_argument_group("traffic")
    traffic.add_argument("--seed", type=int, default=0, help="default: 0")
    traffic.add_argument("--prompt", type=positive, default=400, help="longest (default: 400)")
    traffic.add_argument("--output", type=positive, default=100, help="longest (default: 100)")
    traffic.add_argument("--vocabulary", type=positive, help="token ids (default: the model's)")

    after = parser.add_argument_group("checks")
    after.add_argument(
        "--stock-test",
        action="store_true",
        help="SGLang's run_radix_attention_test first; needs 32,000 token ids and room for"
        " prompts of about 4,000",
    )
    after.add_argument(
        "--alone",
        type=int,
        default=16,
        metavar="N",
        help="serve N finished requests again, one by one, and compare the tokens (default: 16)",
    )
    after.add_argument("--require-equal", action="store_true", help="fail if they differ; for fp32")
    after.add_argument("--host-limit", type=positive_number, default=200, metavar="MIB")
    after.add_argument("--device-limit", type=positive_number, default=200, metavar="MIB")
    after.add_argument("--json", type=Path, metavar="OUT.json", help="write the results here")
    return parser
