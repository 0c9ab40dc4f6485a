#!/usr/bin/env python3
"""Serving benchmark: the same workloads on a real SGLang server with each attention backend.

The servers have SGLang's defaults and what follows `--`, and run one after the other, or side by
side with --gpus: each on a GPU and a share of the cores that no other has. Requests of trees go
over HTTP as token ids, all at once, greedily and with a fixed output length, after their shared
prefixes were brought into the radix cache; time per output token (TPOT) counts while all of them
decode. `churn` and `arrivals` are SGLang's own benchmark, with requests that arrive one by one.

    python scripts/serve/bench_serving.py --shape llama3-8b --backends codec,flashinfer \\
        --json out/serving.json --plot out/serving.png -- --mem-fraction-static 0.85
    python scripts/serve/bench_serving.py --shape llama3-8b --backends codec,fa3,flashinfer \\
        --variant default= --variant graphs=--cuda-graph-max-bs-decode=512 \\
        --variant mixed=--enable-mixed-chunk --request-rates 16,24,40 --gpus all \\
        --json out/serving.json -- --mem-fraction-static 0.85
    python scripts/serve/bench_serving.py --shape llama3-8b --draft llama3-8b-draft \\
        --accept-length 3 --json out/drafts.json -- --speculative-algorithm STANDALONE \\
        --speculative-num-steps 3 --speculative-eagle-topk 1 --speculative-num-draft-tokens 4 \\
        --max-running-requests 64
    python scripts/serve/bench_serving.py --model MODEL --workloads few-shot 1,8,32_4096,512,64 \\
        --json out/serving.json --append

Every row of a tree has a bound, `bound_ms = base_ms + (kv_bytes - base_kv_bytes) / bandwidth`: the
measured TPOT of the same number of requests with 8 tokens of context and nothing shared (the rows
`short-B`, fastest backend), and the bytes of the distinct KV tokens of a step, read once at the
speed of a device copy (`serving/bound.py`; with speculation the bytes count once for all tokens of
a step). Time to first token counts from the sending of all prompts of a tree in one request, so it
holds the server's parsing of all of them. Rows of arrivals are medians of --repeats runs; their
goodput is the requests per second whose mean time between tokens is at most --itl-limit
(`serving/stock_bench.py`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from library import results
from library.servers.launch import make_launch
from library.servers.server import leave_on_sigterm
from plot_serving import draw
from serving.bound import probe_gpus
from serving.document import CannotContinue, Document
from serving.jobs import jobs_of
from serving.options import check_options, make_parser, select
from serving.places import places_of
from serving.session import Session
from table_serving import table


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the file lacks, print it as a table, draw it."""
    started = time.monotonic()
    words = list(sys.argv[1:] if argv is None else argv)
    own, server_words = results.split_words(words)
    parser = make_parser(__doc__)
    args = parser.parse_args(own)
    check_options(parser, args)

    try:
        places = places_of(args.gpus)
        machine = probe_gpus([gpu for place in places for gpu in place.gpus])
    except ValueError as error:
        parser.error(f"--gpus: {error}")
    launch = make_launch(args, args.logs, server_words)
    document = Document(
        **results.head(machine["gpu"], words),
        model=launch.name,
        server_flags=results.without_paths(launch.flags),
        variants={v.name: results.without_paths(v.flags) for v in args.variants},
        seed=args.seed,
        bandwidth_TBps=args.bandwidth or machine["copy_TBps"],
    )
    if args.json.exists():
        try:
            document.continue_from(args.json)
        except CannotContinue as error:
            parser.error(str(error))
    jobs = jobs_of(args.backends, args.variants, select(args), every_variant=args.every_variant)
    session = Session(document, launch, args, jobs, started + args.time_limit)
    complete = session.run(places)
    rows = document.as_json()["rows"]
    print(f"\n{table(rows)}\n\nresults: {args.json}")
    if args.plot and any(row.get("tpot_ms") for row in rows):
        draw(document.as_json(), args.plot)
        print(f"picture: {args.plot}")
    return 0 if complete else 1


if __name__ == "__main__":
    leave_on_sigterm()
    sys.stdout.reconfigure(line_buffering=True)
    sys.exit(main())
