"""Which SGLang versions are accepted, and how others are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sglang_codec import versions


@pytest.mark.parametrize("version", versions.SUPPORTED_SGLANG)
def test_tried_versions_are_supported(version: str) -> None:
    assert versions.refusal(version) is None
    assert versions.refusal(version + "+cpu") is None


@pytest.mark.parametrize("version", ["0.5.16", "0.5.24", "0.6.0", "0.5.2", "0.5.21.post1"])
def test_other_versions_are_refused_with_the_way_out(version: str) -> None:
    reason = versions.refusal(version)
    assert f"SGLang {version};" in reason
    assert ", ".join(versions.SUPPORTED_SGLANG) in reason
    assert "SGLANG_CODEC_ALLOW_UNTESTED_SGLANG=1" in reason


def test_override_lets_an_untested_version_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed_sglang", lambda: "9.9.9")
    with pytest.raises(versions.UnsupportedSGLang, match=re.escape("9.9.9")):
        versions.require_supported(allow_untested=False)
    assert versions.require_supported(allow_untested=True) == "9.9.9"


def test_no_sglang_cannot_be_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed_sglang", lambda: None)
    with pytest.raises(versions.UnsupportedSGLang, match="not installed"):
        versions.require_supported(allow_untested=True)


def test_packaging_names_the_same_range() -> None:
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    first, last = versions.SUPPORTED_SGLANG[0], versions.SUPPORTED_SGLANG[-1]
    assert f"sglang>={first},<={last}" in pyproject
