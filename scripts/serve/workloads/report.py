"""Prints the results, and writes them as JSON and as a picture."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from library import results
from library.servers.backends import gpu_name
from library.servers.encoders import Encoder
from library.servers.sharing import Sharing, explain
from rich import box
from rich.console import Console
from rich.table import Table

from workloads.comparison import Comparison, Difference, compare
from workloads.pictures import draw, forest_picture
from workloads.runs import BackendRun

_SHOWN_DIFFERENCES = 8


def report(
    args: argparse.Namespace,
    title: str,
    workload: dict[str, Any],
    runs: Sequence[BackendRun],
    encoder: Encoder,
    own_figures: Callable[[BackendRun], dict[str, Any]],
    console: Console,
) -> int:
    """Say and write all that the options ask for; 1 if tokens differ that must not.

    `own_figures` are a workload's own of a run, beside those that every run has.
    """
    first = runs[0]
    comparisons = [
        compare(first.backend, first.completions, run.backend, run.completions) for run in runs[1:]
    ]
    print_runs(console, runs)
    own = [own_figures(run) for run in runs]
    for run in runs:
        if run.sharing:
            print_sharing(console, run.backend, run.sharing, forest_picture(args.plot, run))
    for comparison in comparisons:
        print_comparison(console, comparison, args.tie_gap)
    if args.json:
        document = as_json(workload, runs, own, comparisons, encoder, args.tie_gap)
        results.write(document, args.json)
        console.print(f"results: {args.json}")
    if args.plot:
        draw(args.plot, title, runs)
        console.print(f"picture: {args.plot}")
    equal = all(comparison.agrees(args.tie_gap) for comparison in comparisons)
    return 1 if args.require_equal and not equal else 0


def print_runs(console: Console, runs: Sequence[BackendRun]) -> None:
    """One line of figures per backend."""
    table = Table(box=box.SIMPLE)
    headers = ("backend", "start s", "wall s", "tokens", "tokens/s", "TPOT ms", "cached")
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if number else "left", no_wrap=True)
    for run in runs:
        table.add_row(
            run.backend,
            "-" if run.startup_s is None else f"{run.startup_s:.1f}",
            f"{run.wall_s:.2f}",
            str(run.output_tokens),
            f"{run.tokens_per_s:.1f}",
            "-" if run.mean_tpot_ms is None else f"{run.mean_tpot_ms:.2f}",
            f"{run.cached_tokens}/{run.prompt_tokens}",
        )
    console.print(table)


def print_comparison(console: Console, comparison: Comparison, tie_gap: float) -> None:
    """How many requests are identical, and where the others part."""
    line = (
        f"{comparison.other} against {comparison.reference}: {comparison.identical} of"
        f" {comparison.compared} requests have identical tokens"
    )
    if comparison.differences:
        line += f", {comparison.ties(tie_gap)} of the others part at a tie"
    if comparison.unmatched:
        line += f"; {comparison.unmatched} prompts differ after an earlier level parted"
    console.print(line, soft_wrap=True)
    for difference in comparison.differences[:_SHOWN_DIFFERENCES]:
        console.print(f"  {_describe(difference, tie_gap)}", soft_wrap=True)
    hidden = len(comparison.differences) - _SHOWN_DIFFERENCES
    if hidden > 0:
        console.print(f"  and {hidden} more (all of them with --json)")


def _describe(difference: Difference, tie_gap: float) -> str:
    text = (
        f"{difference.name}: token {difference.position} is {difference.got}, not"
        f" {difference.expected}"
    )
    if difference.gap_reference is None:
        return f"{text} (--logprobs tells a tie from an error)"
    other = "" if difference.gap_other is None else f" and {difference.gap_other:.4f}"
    verdict = "a tie" if difference.is_tie(tie_gap) else "not a tie"
    return f"{text}; top two logits {difference.gap_reference:.4f}{other} apart: {verdict}"


def print_sharing(
    console: Console, name: str, sharing: Sharing, picture: Path | None = None
) -> None:
    """The forest and its plan, and the KV tokens read against a stock backend's."""
    text = explain(sharing, picture)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{name} read {sharing.kv_tokens_read:,} KV tokens in {sharing.steps} decode steps"
        f" ({sharing.plans} plans); a stock backend reads {sharing.kv_tokens_stock:,}:"
        f" {sharing.saved:.1%} saved",
        soft_wrap=True,
    )
    for reason, count in sharing.fallbacks.items():
        console.print(f"  not shared, {count} times: {reason}", soft_wrap=True)


def as_json(
    workload: dict[str, Any],
    runs: Sequence[BackendRun],
    own: Sequence[dict[str, Any]],
    comparisons: Sequence[Comparison],
    encoder: Encoder,
    tie_gap: float,
) -> dict[str, Any]:
    """Everything that was measured; `own` has a workload's own figures of each run."""
    return results.head(gpu_name()) | {
        "workload": workload,
        "runs": [_run_json(run, encoder) | more for run, more in zip(runs, own, strict=True)],
        "comparisons": [comparison.as_json(tie_gap) for comparison in comparisons],
    }


def _run_json(run: BackendRun, encoder: Encoder) -> dict[str, Any]:
    figures = ("startup_s", "wall_s", "output_tokens", "tokens_per_s", "mean_tpot_ms")
    figures += ("prompt_tokens", "cached_tokens")
    return {"backend": run.backend, **{name: getattr(run, name) for name in figures}} | {
        "sharing": run.sharing.as_json() if run.sharing else None,
        "batches": [
            {"label": batch.label, "requests": len(batch.completions), "wall_s": batch.wall_s}
            | {"output_tokens": batch.output_tokens}
            for batch in run.batches
        ],
        "requests": [
            {
                "name": completion.request.name,
                "prompt_tokens": len(completion.request.input_ids),
                "cached_tokens": completion.cached_tokens,
                "output_ids": completion.output_ids,
                "text": encoder.decode(completion.output_ids) if encoder.is_text else None,
                "first_token_s": completion.first_token_s,
                "last_token_s": completion.last_token_s,
            }
            for completion in run.completions
        ],
    }
