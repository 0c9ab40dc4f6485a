#!/usr/bin/env python3
"""Serving benchmark: the same workloads on a real SGLang server with each attention backend.

The servers run one after the other with the same flags. Requests go over HTTP as token ids, all at
once, greedily and with a fixed output length, after their shared prefixes were brought into the
radix cache; time per output token (TPOT) counts while all of them decode. `churn` and `random-ids`
are SGLang's own benchmark, with requests that arrive one by one.

    python scripts/serve/bench_serving.py --shape llama3-8b --backends codec,flashinfer \\
        --json out/serving.json --plot out/serving.png -- --mem-fraction-static 0.85
    python scripts/serve/bench_serving.py --model MODEL --workloads few-shot 1,8,32_4096,512,64 \\
        --json out/serving.json --append

Every steady row has a bound, `bound_ms = base_ms + (kv_bytes - base_kv_bytes) / bandwidth`: the
measured TPOT of the same number of requests with 8 tokens of context and nothing shared (the rows
`short-B`, fastest backend), and the bytes of the distinct KV tokens of a step, read once at the
speed of a device copy (`serving/bound.py`). Time to first token counts from the sending of all
prompts of a workload in one request, so it holds the server's parsing of all of them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from library import results
from library.servers.launch import make_launch
from library.servers.server import leave_on_sigterm
from plot_serving import draw
from serving.bound import probe_gpu
from serving.document import CannotContinue, Document
from serving.options import check_options, make_parser, select
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

    launch = make_launch(args, args.logs, server_words)
    machine = probe_gpu()
    document = Document(
        **results.head(machine["gpu"], words),
        model=launch.name,
        server_flags=results.without_paths(launch.flags),
        seed=args.seed,
        bandwidth_TBps=args.bandwidth or machine["copy_TBps"],
    )
    if args.json.exists():
        try:
            document.continue_from(args.json)
        except CannotContinue as error:
            parser.error(str(error))
    session = Session(document, launch, args, started + args.time_limit)
    complete = session.run(args.backends, select(args))
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
