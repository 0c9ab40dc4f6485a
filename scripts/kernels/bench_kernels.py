"""Time decode attention on published prefix trees: `codec`, the stock kernels, prefix-aware peers.

    python scripts/kernels/bench_kernels.py --rows quick --json out/kernels.json
    python scripts/kernels/bench_kernels.py --rows codec,controls --slots scattered,contiguous
    python scripts/kernels/bench_kernels.py --rows all --only "FT-1" --heads 32/8 --peers codec,fa3
    python scripts/kernels/bench_kernels.py --rows all --slots scattered,contiguous \\
        --not-in out/first.json --json out/second.json
    python scripts/kernels/bench_kernels.py --heads 16/2 --head-dim 256 --kv-dtype float8_e4m3fn
    python scripts/kernels/bench_kernels.py --rows verify --query-rows 4
    python scripts/kernels/bench_kernels.py --peers codec --configs 64x64+128x64+b64x64/5/4/1/w

Times are per layer: CUDA-graph replays that cycle through enough layers of KV to keep L2 cold. The
limit is the larger of unique KV bytes over the measured copy bandwidth and FLOPs over the measured
bf16 matrix-product rate, whatever KV is in; beside it stands what Q, O and our partial results take
at that bandwidth. Errors are against fp64 on the same sampled requests for every peer. FastTree
(`fasttree.py`) and PAT (`prefix_attn`, built) take part where they are on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import gc
import re
import sys
import time
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import configurations
import targets
import torch
from library import results
from library.attention import summary, tables, timing
from library.attention.measure import measure_row
from library.attention.peers import ADAPTERS, DEFAULT, PAGES
from library.attention.problem import SLOTS, KVPool, Problem, form_of
from library.options import head_dims, parser_of, positive, some_of

from sglang_codec.shape_support import FP8_DTYPES


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    add, peers = parser.add_argument, some_of(ADAPTERS)
    presets = ", ".join(tables.PRESETS)
    add("--rows", type=some_of(tables.PRESETS), default=["quick"], help=f"from {presets}")
    add("--heads", type=_heads, help="as 32/8,16/1: in place of each table's own")
    add("--only", help="rows whose table, name or tree contains this text")
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    add("--kv-dtype", choices=FP8_DTYPES, help="of the KV cache; default: as --dtype")
    about = "of keys and values, as 128 or 192/128"
    add("--head-dim", type=head_dims, default=(tables.HEAD_DIM,) * 2, help=about)
    about = "tokens before its own that a row sees, as 4095 with --heads 40/8; default: all"
    add("--window-left", type=int, default=-1, help=about)
    add("--sinks", action="store_true", help="a logit of each head joins the softmax")
    about = "newest tokens of a request that attend at once, as for --rows verify; default: 1"
    add("--query-rows", type=positive, default=1, help=about)
    add("--peers", type=peers, help=f"from {', '.join(ADAPTERS)}; default {','.join(DEFAULT)}")
    add("--contiguous-peers", type=peers, help="peers on contiguous slots; default: as --peers")
    add("--slots", type=some_of(SLOTS), default=["scattered"], help="scattered, contiguous or both")
    add("--not-in", type=Path, nargs="*", default=[], help="leave out the rows of these reports")
    add("--layers", type=positive, help="distinct KV layers; default: enough to keep L2 cold")
    add("--rounds", type=positive, default=3, help="rounds in which the peers take turns")
    add("--budget", type=float, default=float("inf"), help="stop before a row after these seconds")
    add("--json", type=Path, help="write the report here, after every row")
    add("--device", default="cuda")
    add("--verbose", action="store_true", help="traceback of every peer that fails")
    form = {"nargs": "+", "default": [], "metavar": "CONFIG"}
    about = "launch configurations of codec, as more peers: see configurations.py"
    add("--configs", type=configurations.parse, **form, help=about)
    options = parser.parse_args(arguments)
    options.form = form_of(options.dtype, options.kv_dtype)
    options.peers = options.peers or default_peers(options.form)
    for text, config in options.configs:
        ADAPTERS[f"codec {text}"] = partial(configurations.configured, config, text)
        options.peers = [*options.peers, f"codec {text}"]
    options.contiguous_peers = options.contiguous_peers or options.peers
    options.selected = tables.select(options.rows, options.heads, options.only)
    if not options.selected:
        parser.error(f"--only {options.only!r} is in no row of {','.join(options.rows)}")
    return options


def _heads(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if bad := [word for word in words if not re.fullmatch(r"[1-9]\d*/[1-9]\d*", word)]:
        raise argparse.ArgumentTypeError(f"{bad[0]!r}: query / KV heads, as in 32/8,16/1")
    return words


def default_peers(form: str) -> list[str]:
    # FlashInfer compiles its cascade's FA3 prefill at first use unless it is prebuilt, and that
    # takes many minutes: other types than bf16 get it only when asked for
    return [peer for peer in DEFAULT if form == "bfloat16" or peer != "cascade"]


def run(options: argparse.Namespace) -> results.Report:
    started = time.monotonic()
    device = torch.device(options.device)
    report = results.Report.of(device, timing.ceilings(device))
    print(report.gpu, report.commit, report.versions, report.ceilings, flush=True)
    dtypes = (getattr(torch, name) for name in (options.dtype, options.kv_dtype or options.dtype))
    pool = KVPool(*dtypes, device)
    work = [*work_of(options)]
    for number, (row, slots) in enumerate(work):
        elapsed = time.monotonic() - started
        if elapsed > options.budget:
            report.stopped = f"budget spent after {number} of {len(work)} rows"
            break
        progress = f"[{elapsed:4.0f}s {number + 1}/{len(work)}]"
        print(f"{progress} {row.table} {row.name} {row.heads} {slots[:4]}", end=" ", flush=True)
        try:
            report.rows.append(_one(row, slots, pool, options, report.ceilings))
            print(summary.line(report.rows[-1]), flush=True)
        except torch.OutOfMemoryError as error:
            _skip(report, row, slots, f"out of memory: {error}")
        except Exception as error:  # whatever a row does, the report keeps all other rows
            traceback.print_exc()
            _skip(report, row, slots, f"{type(error).__name__}: {error}")
            if not timing.is_alive(device):
                report.stopped = f"the device is unusable since {row.table} {row.name} {row.heads}"
                break
        finally:
            if options.json:
                report.write(options.json)
        if number == 0:
            gc.collect()
            gc.freeze()  # the imported libraries: walking them again costs more than a row
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if options.json:
        report.write(options.json)
    return report


def work_of(options: argparse.Namespace) -> Iterator[tuple[tables.Row, str]]:
    """The rows and layouts of KV slots to measure, those of earlier reports left out."""
    done = {results.key(row) for row in results.load(options.not_in)[1]}
    of_layers = {name: getattr(options, name) for name in ("window_left", "sinks", "query_rows")}
    of_layers |= dict(zip(("head_dim", "value_dim"), options.head_dim, strict=True))
    of_layers["dtype"] = options.form
    for row in options.selected:
        for slots in options.slots:
            named = {"table": row.table, "name": row.name, "heads": row.heads, "slots": slots}
            if results.key(named | of_layers) not in done:
                yield row, slots


def _one(
    row: tables.Row, slots: str, pool: KVPool, options: argparse.Namespace, ceilings: dict
) -> dict:
    peers = options.contiguous_peers if slots == "contiguous" else options.peers
    pages = [PAGES[peer] for peer in peers if peer in PAGES]
    align = max(pages, default=1) if slots == "contiguous" else 1
    shape = dict(zip(("head_dim", "value_dim"), options.head_dim, strict=True))
    shape |= {"window": options.window_left + 1, "has_sinks": options.sinks}
    shape["query_rows"] = options.query_rows
    problem = Problem(row, pool, slots, align, options.layers, **shape)
    return measure_row(problem, peers, ceilings, options.rounds, options.verbose)


def _skip(report: results.Report, row: tables.Row, slots: str, why: str) -> None:
    report.skipped.append(
        {"table": row.table, "name": row.name, "heads": row.heads, "slots": slots, "why": why}
    )
    print(why, flush=True)


def main() -> int:
    options = parse()
    report = run(options)
    print(summary.summarise(report.rows))
    if "codec" in options.peers:
        print(f"\n{targets.report(report.rows)}")
    if report.stopped:
        print(f"stopped: {report.stopped}")
    return 3 if report.stopped and not report.stopped.startswith("budget") else 0


if __name__ == "__main__":
    sys.exit(main())
