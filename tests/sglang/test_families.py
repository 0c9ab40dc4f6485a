"""Families whose full layers have more than plain attention, beside delegated window layers."""

from __future__ import annotations

from pathlib import Path

import pytest
from sglang_versions import VERSIONS
from warm_python import run_probe

VARIABLES = {"SGLANG_CODEC_PREFILL_BACKEND": "triton", "SGLANG_CODEC_CHECK_SHARING": "1"}
# what is served, and which layers are not: they have a window
FAMILIES = {
    "gpt_oss_120b": ("2 of 4/2 heads of 32, float32", {0: 15, 2: 15}),
    "gemma2_27b": ("2 of 4/2 heads of 32, float32, capped at 2", {0: 15, 2: 15}),
    "phi3_mini": ("4 of 4/4 heads of 24, float32", {}),
    "mimo_v2_flash": ("1 of 4/2 heads of 48/32, float32", {1: 16, 2: 16, 3: 16}),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_the_stock_backend(family: str, version: str, tmp_path: Path) -> None:
    report, _ = run_probe("family_probe", tmp_path, family, sglang=version, **VARIABLES)
    group, windows = FAMILIES[family]
    assert report["groups"] == [group]
    assert report["delegated"] == {
        str(layer): f"sliding window of {tokens} tokens" for layer, tokens in windows.items()
    }
    assert report["fallbacks"] == {}
    assert report["saved"] > 0
    assert report["ours"] == report["stock"]
    # sinks and caps decide about tokens, where there are any
    assert (report["stock"] == report["without"]) == (family == "phi3_mini")
