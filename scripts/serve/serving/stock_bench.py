"""Runs SGLang's own `sglang.bench_serving` against a server, and reads what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from library.servers.sglang_benchmark import run_benchmark
from library.servers.workload import Arrivals

from serving.document import digest
from serving.steady import p50_p99

OUTPUT_TAIL = 2000
LIMIT_S = 900.0


class BenchmarkFailed(RuntimeError):
    """SGLang's benchmark ended with an error; the message has the end of its output."""


def arguments(workload: Arrivals, *, url: str, model: str, seed: int) -> list[str]:
    """The words after `python -m sglang.bench_serving`."""
    options = {
        "--backend": "sglang",
        "--base-url": url,
        "--model": model,
        "--tokenizer": model,
        "--request-rate": workload.rate,
        "--seed": seed,
        "--dataset-name": "generated-shared-prefix",
        "--gsp-num-groups": workload.groups,
        "--gsp-prompts-per-group": workload.prompts,
        "--gsp-system-prompt-len": workload.system,
        "--gsp-question-len": workload.question,
        "--gsp-output-len": workload.output,
        "--num-prompts": workload.requests,
    }
    words = [str(word) for pair in options.items() for word in pair]
    return [*words, "--output-details", "--disable-tqdm"]


def run(words: list[str], folder: Path, limit_s: float = LIMIT_S) -> dict[str, Any]:
    """The result of SGLang's benchmark.

    Its prompts are kept in the home directory under a name that does not say which vocabulary they
    are made of, and reading them back leaves the random numbers of the arrivals elsewhere: with a
    new home every run makes the same prompts and the same arrivals.

    Raises:
        BenchmarkFailed: if it ends with an error, or has no result within the limit.
    """
    home, log = folder / "home", folder / "bench_serving.log"
    results = folder / "bench_serving.jsonl"
    for old in (results, *home.glob(".cache/sglang/benchmark/*")):
        old.unlink(missing_ok=True)
    home.mkdir(parents=True, exist_ok=True)
    words = [*words, f"--output-file={results.absolute()}"]
    status = run_benchmark(words, home=home.absolute(), log=log, limit_s=limit_s)
    if status is None:
        raise BenchmarkFailed(f"sglang.bench_serving took more than {limit_s:.0f} s")
    if status or not results.exists():
        said = log.read_text(errors="replace").strip()
        last = (said.splitlines() or ["no output"])[-1]
        raise BenchmarkFailed(
            f"sglang.bench_serving ended with {status}: {last}\n{said[-OUTPUT_TAIL:]}"
        )
    return json.loads(results.read_text().splitlines()[-1])


def figures_of(result: dict[str, Any], itl_limit_ms: float) -> dict[str, Any]:
    """The figures of a result, under the names of the other rows.

    Raises:
        BenchmarkFailed: if requests failed: the figures would be those of an easier workload.
    """
    if errors := [error for error in result["errors"] if error]:
        raise BenchmarkFailed(f"{len(errors)} requests failed, the first with {errors[0][-500:]}")
    return {
        "concurrency": result["concurrency"],
        "prompt_tokens": result["total_input_tokens"],
        "output_tokens": result["total_output_tokens"],
        "tpot_ms": result["mean_tpot_ms"],
        "itl_ms": p50_p99([gap for gaps in result["itls"] for gap in gaps]),
        "ttft_ms": p50_p99(result["ttfts"]),
        "wall_s": result["duration"],
        "tokens_per_s": result["output_throughput"],
        "goodput": goodput(result, itl_limit_ms),
        "outputs": [digest(text) for text in result["generated_texts"]],
    }


def goodput(result: dict[str, Any], itl_limit_ms: float) -> dict[str, float]:
    """Requests per second whose mean time between tokens was within the limit, and their share.

    A request is good as in `--goodput tpot:LIMIT` of SGLang's and of vLLM's benchmark: (last token
    - first token) / (tokens - 1) is at most the limit, and one of a single token always is.
    """
    pairs = zip(result["itls"], result["output_lens"], strict=True)
    means = [1e3 * sum(gaps) / max(1, tokens - 1) for gaps, tokens in pairs]
    good = sum(mean <= itl_limit_ms for mean in means)
    return {"requests_per_s": good / result["duration"], "share": good / len(means)}
