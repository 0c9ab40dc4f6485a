"""Servers that speculate: tokens are those of a server that does not, whoever drafts them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from second_layer import GRAPHS, ON_A_GPU, are_alike, gpu_environment
from sglang_versions import INSTALLED, OVERLAYS, SUPPORT, run_python
from warm_python import run_probe

Report = dict[str, Any]
NGRAM = {
    "speculative_algorithm": "NGRAM",
    "speculative_num_draft_tokens": 4,
    "speculative_ngram_max_bfs_breadth": 1,
    "speculative_ngram_min_bfs_breadth": 1,
}
STANDALONE = {
    "speculative_algorithm": "STANDALONE",
    "speculative_num_steps": 2,
    "speculative_eagle_topk": 1,
    "speculative_num_draft_tokens": 3,
    # Triton's kernels run in the interpreter, PyTorch's backend drafts no several steps
    "speculative_draft_attention_backend": "triton",
    "triton_attention_num_kv_splits": 1,
}
# a part of a model with linear layers drafts for it (MTP)
NEXTN = STANDALONE | {"speculative_algorithm": "NEXTN", "linear": True}
# drafts of their own classes, of a token that is said often; SGLang refuses DFLASH on a CPU
OFTEN = {"often": True}
EAGLE = STANDALONE | {"speculative_algorithm": "EAGLE"} | OFTEN
EAGLE3 = EAGLE | {"speculative_algorithm": "EAGLE3"}
DFLASH = OFTEN | {
    "speculative_algorithm": "DFLASH",
    "speculative_num_draft_tokens": 3,
    "speculative_draft_attention_backend": "triton",
    "triton_attention_num_kv_splits": 1,
}
# linear layers prefill slowly in the interpreter, and let as many tokens be shared
SHORT = {"linear": True, "trunk": 64}
OVERLAP = {"disable_overlap_schedule": False}
OVERLAPPED = STANDALONE | OVERLAP
CASES = {
    "linear layers, n-grams": ("0.5.17", NGRAM | SHORT),
    "linear layers, their own draft, overlapped": ("0.5.23", NEXTN | SHORT | OVERLAP),
    "EAGLE": (INSTALLED, EAGLE),
    "EAGLE3, overlapped": ("0.5.23", EAGLE3 | OVERLAP),
    "a draft model, overlapped": (INSTALLED, OVERLAPPED),
    "a draft model": ("0.5.17", STANDALONE),
    "n-grams": (INSTALLED, NGRAM),
    "n-grams, pages of four": ("0.5.23", NGRAM | {"page_size": 4}),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Report]:
    @functools.cache
    def report(backend: str, server_args: str, sglang: str = INSTALLED) -> Report:
        folder = tmp_path_factory.mktemp("speculation")
        return run_probe("speculation_probe", folder, backend, server_args, sglang=sglang)[0]

    return report


def plain(served: Callable[..., Report], arguments: dict[str, Any]) -> dict[str, list[int]]:
    """Tokens of SGLang's own backend without speculation, which greedy speculation repeats."""
    model = {name: arguments[name] for name in ("linear", "trunk", "often") if name in arguments}
    return served("torch_native", json.dumps(model))["nothing"]["tokens"]


@pytest.mark.parametrize("case", CASES)
def test_tokens_are_those_without_speculation(case: str, served: Callable[..., Report]) -> None:
    version, arguments = CASES[case]
    if version not in (INSTALLED, *OVERLAYS):
        pytest.skip(f"SGLang {version} is not at hand")
    report, most = served("codec", json.dumps(arguments), version), _new_tokens(arguments)
    rounds = [report[name] for name in ("nothing", "again") if name in report]
    grown: set[int] = set()
    for seen in rounds:
        assert seen["tokens"] == plain(served, arguments)
        # codec verified every step, and read the right KV slots
        steps = seen["steps"]
        assert all(step["verifies"] for step in steps)
        assert seen["totals"]["steps"] >= len(steps)
        assert seen["wrong"] == []
        assert seen["fallbacks"] == {}
        assert all(f"{most} query rows" in group for group in seen["groups"])
        assert all(step["host knows"] is not ("overlapped" in case) for step in steps)
        # no one reads who sees which token of a row, only who sees which draft
        if "n-grams" in case:
            assert all(step["mask"] == len(step["rows"]) * most**2 for step in steps)
        pairs = list(zip(steps, steps[1:], strict=False))
        changes = 1 + sum(one["rows"] != other["rows"] for one, other in pairs)
        # under overlap a row leaves a step after its last one
        assert seen["totals"]["plans"] <= changes + 1
        grown |= {
            after - before
            for one, other in pairs
            if one["rows"] == other["rows"]
            for before, after in zip(one["lengths"], other["lengths"], strict=True)
        }
    assert sum(seen["saved"] for seen in rounds) > 0
    # some drafts were accepted and some were not
    assert {1, most} <= grown


def _new_tokens(arguments: dict[str, Any]) -> int:
    return arguments["speculative_num_draft_tokens"]


@pytest.mark.parametrize("fault", ["the planner", "reading the tree", "comparing batches"])
def test_what_raises_in_a_verified_step_is_counted(
    fault: str, served: Callable[..., Report]
) -> None:
    seen = served("codec", json.dumps(NGRAM), INSTALLED)[fault]
    assert seen["tokens"] == plain(served, NGRAM)
    assert seen["fallbacks"]
    assert all(step["verifies"] for step in seen["steps"])


def test_delegated_layers_verify_with_the_stock_backend(
    served: Callable[..., Report],
) -> None:
    arguments = NGRAM | {"prefill_attention_backend": "triton", "delegate": True}
    seen = served("codec", json.dumps(arguments))["nothing"]
    assert seen["tokens"] == plain(served, arguments)
    assert seen["delegated"] == [1]
    most = _new_tokens(arguments)
    # the stock backend reads which tokens of its row each draft sees
    assert all(
        step["mask"] == most * sum(length + most for length in step["lengths"])
        for step in seen["steps"]
    )
    assert seen["saved"] > 0
    assert seen["fallbacks"] == {}


ON_GPUS = {
    "n-grams": NGRAM,
    "a draft": STANDALONE,
    "linear layers, n-grams": NGRAM | {"linear": True},
    "linear layers, their own draft": NEXTN,
    "EAGLE": EAGLE,
    "EAGLE3": EAGLE3,
    "DFLASH": DFLASH,
}


@pytest.mark.cuda
@pytest.mark.parametrize("graphs", GRAPHS)
@pytest.mark.parametrize("case", ON_GPUS)
def test_speculation_on_a_gpu(case: str, graphs: str, tmp_path: Path) -> None:
    """With overlap, where the host does not know lengths but those of n-grams."""
    heads = {"head_dim": 128, "heads": 8, "kv_heads": 2}
    arguments = ON_GPUS[case] | ON_A_GPU | GRAPHS[graphs] | OVERLAP
    if "linear" in arguments:
        heads |= {"head_dim": 256, "linear_heads": (4, 8)}  # heads of 128 in the linear layers
        # FlashInfer's would have to be compiled
        arguments["linear_attn_prefill_backend"] = "triton"
    arguments |= {"heads": heads, "repeat": 16, "context_length": 4096}
    seen = {}
    for backend in ("codec", "fa3"):
        folder = tmp_path / backend
        folder.mkdir()
        output = folder / "report.json"
        program = [SUPPORT / "speculation_probe.py", folder / "model", output, backend]
        done = run_python(*program, json.dumps(arguments), **gpu_environment("fa3"))
        assert done.returncode == 0, done.stderr[-4000:]
        seen[backend] = json.loads(output.read_text())["nothing"]
    ours = seen["codec"]
    assert are_alike(ours["tokens"], seen["fa3"]["tokens"])
    assert ours["saved"] > 0
    assert ours["wrong"] == []
    assert ours["fallbacks"] == {}
    assert all(step["verifies"] for step in ours["steps"])
    assert ours["totals"]["plans"] <= 10
