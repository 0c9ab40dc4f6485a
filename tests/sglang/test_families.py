"""Families with more than plain attention: sinks, caps, and windows, which may be delegated."""

from __future__ import annotations

from pathlib import Path

import pytest
from sglang_versions import VERSIONS
from warm_python import run_probe

VARIABLES = {"SGLANG_CODEC_PREFILL_BACKEND": "triton", "SGLANG_CODEC_CHECK_SHARING": "1"}
# what is served, and which layers are not: their windows of so many tokens are too short
FAMILIES = {
    "gpt_oss_120b": ("2 of 4/2 heads of 32, float32", {0: 16, 2: 16}),
    "gemma2_27b": ("2 of 4/2 heads of 32, float32, capped at 2", {0: 16, 2: 16}),
    "phi3_mini": ("4 of 4/4 heads of 24, float32", {}),
    "mimo_v2_flash": ("1 of 4/2 heads of 48/32, float32", {1: 17, 2: 17, 3: 17}),
}


# an engine takes half a minute
OLDEST, NEWEST = min(VERSIONS), max(VERSIONS)
SERVED = sorted({("gpt_oss_120b", OLDEST), *((family, NEWEST) for family in FAMILIES)})


@pytest.mark.parametrize(("family", "version"), SERVED)
def test_tokens_are_those_of_the_stock_backend(family: str, version: str, tmp_path: Path) -> None:
    report, _ = run_probe("family_probe", tmp_path, family, sglang=version, **VARIABLES)
    group, windows = FAMILIES[family]
    assert report["groups"] == [group]
    assert report["delegated"] == {
        str(layer): f"sliding window of {tokens} tokens, codec serves 1024 and more"
        for layer, tokens in windows.items()
    }
    assert report["fallbacks"] == {}
    assert report["saved"] > 0
    assert report["ours"] == report["stock"]
    # sinks and caps decide about tokens, where there are any
    first = len(report["without"][0])
    is_same = [row[:first] for row in report["stock"]] == report["without"]
    assert is_same == (family == "phi3_mini")


# group by group; the windows are cut to 16 tokens, or 17 where SGLang's own number is one too many
WINDOWS = {
    "command_a": ("3 of 4/2 heads of 32, float32, window of 17", "1 of 4/2 heads of 32, float32"),
    # SGLang 0.5.17 finds no rope in its configuration
    "olmo3_7b": ("3 of 4/2 heads of 32, float32, window of 16", "1 of 4/2 heads of 32, float32"),
}


@pytest.mark.parametrize(
    ("family", "version"), sorted({("command_a", OLDEST), ("olmo3_7b", NEWEST)})
)
def test_windows_move_over_shared_tokens(family: str, version: str, tmp_path: Path) -> None:
    """Against torch_native: SGLang's Triton decodes with a token less than its other backends."""
    variables = VARIABLES | {"SGLANG_CODEC_PREFILL_BACKEND": "torch_native"}
    report, _ = run_probe("family_probe", tmp_path, family, "16", sglang=version, **variables)
    assert report["groups"] == list(WINDOWS[family])
    assert report["delegated"] == {}
    assert report["fallbacks"] == {}
    assert report["saved"] > 0
    assert report["ours"] == report["stock"]
    first = len(report["without"][0])
    assert [row[:first] for row in report["stock"]] != report["without"]


@pytest.mark.parametrize("version", [NEWEST])
def test_a_window_pool_serves_as_one_pool_does(version: str, tmp_path: Path) -> None:
    """Its places are fewer than the tokens that the rows get, so they are used again."""
    variables, ours = VARIABLES | {"SGLANG_CODEC_PREFILL_BACKEND": "torch_native"}, []
    for name, pool, more in (
        ("one", "MHATokenToKVPool", '{"is_hybrid_swa": false}'),
        ("two", "SWAKVPool", '{"is_hybrid_swa": true}'),
    ):
        (folder := tmp_path / name).mkdir()
        arguments = ("family_probe", folder, "command_a", "16", more)
        report, _ = run_probe(*arguments, sglang=version, **variables)
        assert report["pool"] == pool
        assert report["groups"] == list(WINDOWS["command_a"])
        assert report["fallbacks"] == {}
        assert report["saved"] > 0
        ours.append(report["ours"])
    assert ours[0] == ours[1]


@pytest.mark.parametrize("version", [NEWEST])
def test_an_fp8_cache_is_read_as_the_stock_backend_reads_it(version: str, tmp_path: Path) -> None:
    """By SGLang's `torch_native`, which keeps queries and weights as they are but has no scales."""
    arguments = ("family_probe", tmp_path, "llama31_8b", "", "{}", "fp8_e4m3")
    report, _ = run_probe(*arguments, sglang=version)
    assert report["groups"] == ["4 of 4/2 heads of 32, float32 over float8_e4m3fn"]
    assert report["delegated"] == report["fallbacks"] == {}
    assert report["saved"] > 0
    assert report["ours"] == report["stock"]
