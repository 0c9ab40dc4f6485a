"""Speculative decoding as codec serves it: chains of a fixed length, verified by the target."""

from __future__ import annotations

from typing import Any

from sglang_codec.settings import setting

# whose verification is plain causal attention; NEXTN and MTP are EAGLE once SGLang has resolved
ALGORITHMS = ("EAGLE", "EAGLE3", "STANDALONE", "NGRAM", "DFLASH")


def query_rows(runner: Any) -> int:
    """Tokens of a request that attend in one step of the target: 1 without speculation."""
    if setting(runner, "speculative_algorithm") is None:
        return 1
    return setting(runner, "speculative_num_draft_tokens")


def why_not_verified(runner: Any) -> str | None:
    """Why codec cannot verify what this server drafts, with the remedy; None if it can."""
    algorithm = setting(runner, "speculative_algorithm")
    if getattr(runner, "is_draft_worker", False):
        return (
            "the draft model asks for codec, which verifies and does not draft; set "
            "--speculative-draft-attention-backend to one of SGLang's (fa3, flashinfer, triton)"
        )
    if algorithm is None:
        return None
    if algorithm not in ALGORITHMS:
        return (
            f"--speculative-algorithm {algorithm} is none of those that codec verifies "
            f"({', '.join(ALGORITHMS)}); {_REMEDY}"
        )
    if (topk := setting(runner, "speculative_eagle_topk") or 1) > 1:
        by = "ngram-max-bfs-breadth" if algorithm == "NGRAM" else "eagle-topk"
        return (
            f"--speculative-{by} {topk} drafts trees, codec verifies chains; set "
            f"--speculative-{by} 1, or {_REMEDY}"
        )
    if setting(runner, "speculative_adaptive"):
        return (
            "--speculative-adaptive changes how many tokens are drafted, codec plans for a fixed "
            f"number; drop --speculative-adaptive, or {_REMEDY}"
        )
    if (mode := setting(runner, "speculative_attention_mode")) != "decode":
        return (
            f"--speculative-attention-mode {mode} verifies with the prefill backend, so codec "
            "would serve nothing; set --speculative-attention-mode decode"
        )
    return _plan_stream()


_REMEDY = "drop --speculative-algorithm or use another --decode-attention-backend"


def _plan_stream() -> str | None:
    from sglang.srt.environ import envs

    if envs.SGLANG_ENABLE_OVERLAP_PLAN_STREAM.get():
        return (
            "SGLANG_ENABLE_OVERLAP_PLAN_STREAM=1 would replace codec's plan while the step before "
            "still reads it; unset SGLANG_ENABLE_OVERLAP_PLAN_STREAM"
        )
    return None
