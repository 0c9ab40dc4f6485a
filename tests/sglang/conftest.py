"""Runs of the real scheduler that several tests look at."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from warm_python import run_probe

Report = dict[str, Any]


@pytest.fixture(scope="session")
def attach_report(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Report]:
    """What `support/attach_probe.py` saw on a version; each configuration is served once."""

    @functools.cache
    def report(sglang: str, server_args: str) -> Report:
        folder = tmp_path_factory.mktemp("attach")
        return run_probe("attach_probe", folder, server_args, sglang=sglang)[0]

    return report


@pytest.fixture
def distribution(tmp_path: Path) -> Path:
    """Metadata as an installation of this checkout leaves it."""
    info = tmp_path / "sglang_codec-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sglang-codec\nVersion: 0.1.0\n")
    entry = "[sglang.srt.plugins]\ncodec = sglang_codec.plugin:load_plugin\n"
    (info / "entry_points.txt").write_text(entry)
    return tmp_path


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder with a configuration only."""
    from inproc_scheduler import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("models") / "llama")
