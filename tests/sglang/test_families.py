"""Families whose full layers have more than plain attention, beside delegated window layers."""

from __future__ import annotations

from pathlib import Path

import pytest
from sglang_versions import VERSIONS
from warm_python import run_probe

VARIABLES = {"SGLANG_CODEC_PREFILL_BACKEND": "triton", "SGLANG_CODEC_CHECK_SHARING": "1"}
WINDOW = "sliding window of 15 tokens"
FAMILIES = {
    "gpt_oss_120b": "2 of 4/2 heads of 32, float32",
    "gemma2_27b": "2 of 4/2 heads of 32, float32, capped at 2",
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_the_stock_backend(family: str, version: str, tmp_path: Path) -> None:
    report, _ = run_probe("family_probe", tmp_path, family, sglang=version, **VARIABLES)
    assert report["groups"] == [FAMILIES[family]]
    assert report["delegated"] == {"0": WINDOW, "2": WINDOW}
    assert report["fallbacks"] == {}
    assert report["saved"] > 0
    assert report["ours"] == report["stock"]
    assert report["stock"] != report["without"]


@pytest.mark.parametrize("version", VERSIONS)
def test_an_fp8_cache_is_read_as_the_stock_backend_reads_it(version: str, tmp_path: Path) -> None:
    """By SGLang's `torch_native`, which keeps queries and weights as they are but has no scales."""
    report, _ = run_probe("family_probe", tmp_path, "llama31_8b", "fp8_e4m3", sglang=version)
    assert report["groups"] == ["4 of 4/2 heads of 32, float32 over float8_e4m3fn"]
    assert report["delegated"] == report["fallbacks"] == {}
    assert report["saved"] > 0
    assert report["ours"] == report["stock"]
