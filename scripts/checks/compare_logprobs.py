#!/usr/bin/env python3
"""Log-probabilities of real text: codec against stock backends, and these against each other.

Prompts that share the beginnings of a few texts are decoded together, greedily. At every decode
step whose preceding tokens are the same, the log-probability of the next token is compared between
all pairs of backends. Name the same prefill backend for all of them, as below, and only the decode
kernels differ. Exit status 0 if codec is no further from a stock backend than two stock ones are
from each other.

    python scripts/checks/compare_logprobs.py --model .models/smollm2 \\
        --backend fa3/codec,fa3,fa3/flashinfer,fa3/triton --json out/logprobs.json \\
        --plot out/logprobs.png --engine mem_fraction_static=0.5
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from library import results
from library.options import add_engine_option, parse_backends, parser_of, positive
from library.servers.backends import gpu_name, uses_codec
from library.servers.clients import Completion, GenerationError, Request, Sampling
from library.servers.encoders import make_encoder
from library.servers.engines import started_engine
from library.servers.server import leave_on_sigterm
from library.servers.sharing import read_sharing
from logprobs.differences import compare_all, verdict
from logprobs.picture import draw
from logprobs.prompts import make_prompts

ROOT = Path(__file__).resolve().parents[2]
TEXT = tuple(ROOT / name for name in ("LICENSE", "docs/architecture.md", "docs/performance.md"))
TOP = 20  # tokens of whose log-probabilities each step tells


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_of(__doc__)
    add, backends = parser.add_argument, "fa3/codec,fa3,fa3/flashinfer,fa3/triton"
    add("--model", required=True, help="a directory with weights and tokenizer")
    about = f"codec and stock backends (default: {backends})"
    add("--backend", type=parse_backends, default=backends, metavar="A,B,...", help=about)
    add_engine_option(parser)
    add("--text", type=Path, action="append", help="text files (default: this project's)")
    add("--prompts", type=positive, default=256, help="default: 256")
    add("--longest", type=positive, default=2000, help="tokens (default: 2000)")
    add("--new-tokens", type=positive, default=17, help="each (default: 17)")
    add("--seed", type=int, default=0, help="default: 0")
    add("--json", type=Path, required=True, metavar="OUT.json")
    add("--plot", type=Path, metavar="OUT.png")
    return parser


def serve(
    args: argparse.Namespace,
    backend: str,
    texts: Sequence[Sequence[int]],
    requests: list[Request],
    folder: Path,
) -> tuple[list[Completion], dict[str, Any]]:
    """The requests on one engine, and what is to be said of it."""
    started, dump = time.monotonic(), folder / "dump.json"
    with started_engine(args.model, backend, dict(args.engine), dump) as target:
        # the texts are in the radix tree then, and every prompt shares its beginning
        whole = [Request(f"text {i}", tuple(ids), 1) for i, ids in enumerate(texts)]
        target.client.generate(whole, Sampling())
        completions = target.client.generate(requests, Sampling(top=TOP))
    sharing = read_sharing(dump) if uses_codec(backend) else None
    row: dict[str, Any] = {"backend": backend, "seconds": time.monotonic() - started}
    if sharing:
        row |= {name: value for name, value in sharing.as_json().items() if name != "dump"}
    return completions, row


def main(argv: Sequence[str] | None = None) -> int:
    """Serve, compare, write down, draw."""
    args = make_parser().parse_args(argv)
    encoder = make_encoder(args.model)
    documents = [path.read_text() for path in args.text or TEXT]
    texts = [encoder.encode(text)[: args.longest] for text in documents]
    requests = make_prompts(texts, args.prompts, args.new_tokens, args.seed)
    document = results.head("cpu") | {
        "model": Path(args.model).name,
        "engine": {name: str(value) for name, value in args.engine},
        "seed": args.seed,
        "requests": len(requests),
        "prompt_tokens": sum(len(request.input_ids) for request in requests),
        "text_tokens": [len(ids) for ids in texts],
        "new_tokens": args.new_tokens,
    }
    runs: dict[str, list[Completion]] = {}
    rows = []
    with tempfile.TemporaryDirectory(prefix="sglang-codec-") as folder:
        for backend in args.backend:
            try:
                runs[backend], row = serve(args, backend, texts, requests, Path(folder))
            except (GenerationError, RuntimeError, ValueError, OSError) as error:
                row = {"backend": backend, "why": f"{type(error).__name__}: {error}"[:400]}
            rows.append(row)
            print(row, flush=True)
            differences = compare_all(runs)
            document |= {"backends": rows, "differences": [d.as_json() for d in differences]}
            document["verdict"] = verdict(differences)
            results.write(document, args.json)
    document["gpu"] = gpu_name()  # an engine needs the GPU to itself
    results.write(document, args.json)
    for pair in document["differences"]:
        chosen = {f"{share:.3g}": f"{x:.2e}" for share, x in pair["quantiles"][50::20]}
        print(f"{pair['first']} and {pair['second']}: {pair['positions']} positions, {chosen}")
    print(document["verdict"])
    if args.plot and document["differences"]:
        draw(json.loads(args.json.read_text()), args.plot)
    return 0 if document["verdict"]["no_wider"] else 1


if __name__ == "__main__":
    leave_on_sigterm()
    sys.exit(main())
