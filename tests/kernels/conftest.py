"""Marks of the operator tests, which run on a GPU where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

_HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a GPU every test that asks for the device is a `cuda` test: `pytest -m cuda` runs it."""
    if not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        return
    for item in items:
        if item.path.is_relative_to(_HERE) and "device" in getattr(item, "fixturenames", ()):
            item.add_marker("cuda")


@pytest.fixture
def dtype(device: torch.device) -> torch.dtype:
    """The dtype in which a kernel's logic shows best: exact on a CPU, what is served on a GPU."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


@pytest.fixture
def low_dtype(device: torch.device) -> torch.dtype:
    """On a CPU too one whose rounding is in the budget of errors, where fp32 would show more."""
    return torch.float16 if device.type == "cpu" else torch.bfloat16


@pytest.fixture(autouse=True)
def _log_of_zero_is_meant() -> Iterator[None]:
    """The interpreter computes in NumPy, which warns of the LSE of an empty part."""
    with np.errstate(divide="ignore"):
        yield
