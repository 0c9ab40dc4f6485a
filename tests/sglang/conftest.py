"""Runs of the real scheduler that several tests look at."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
from sglang_versions import SUPPORT, run_python

Report = dict[str, Any]


@pytest.fixture(scope="session")
def attach_report(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Report]:
    """What `support/attach_probe.py` saw on a version; each configuration is served once."""

    @functools.cache
    def report(sglang: str, server_args: str) -> Report:
        folder = tmp_path_factory.mktemp("attach")
        output = folder / "report.json"
        done = run_python(
            str(SUPPORT / "attach_probe.py"),
            str(folder / "model"),
            str(output),
            server_args,
            sglang=sglang,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(output.read_text())

    return report
