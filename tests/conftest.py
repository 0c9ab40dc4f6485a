"""Seeds, devices and traps for every test."""

from __future__ import annotations

import atexit
import os
import random
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

# helpers of the tests, and the programs under test: neither is part of the installed package
sys.path.append(str(ROOT / "tests" / "support"))
sys.path += [str(ROOT / "scripts" / name) for name in ("serve", "kernels", "planner", "checks")]

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    # triton reads it when it is imported: a process is either interpreted or compiled
    os.environ.setdefault("TRITON_INTERPRET", "1")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@atexit.register
def _silence_shutdown_warnings() -> None:
    """Keep pytest's closing line the last: extension modules warn while Python shuts down."""
    warnings.simplefilter("ignore")
    # by then CPython uses the filters of the latest warning, and that was under pytest's
    warnings.warn("make the filter above the latest", stacklevel=1)


def pytest_configure() -> None:
    if INTERPRETED:
        from interpreter_bf16 import repair_bf16_dot

        from sglang_codec.patches.interpreter_speed import hasten_interpreter

        repair_bf16_dot()
        hasten_interpreter()


# the files that take longest, which begin first: none is left to one process at the end
LONGEST = (
    "test_compile",
    "test_families",
    "test_engine_cpu",
    "test_metrics",
    "test_speculation",
    "test_churn_cpu",
    "test_mixed_chunks",
    "test_kv_store",
    "test_delegate",
    "test_query_rows",
    "test_sharing",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files first. Without a GPU, tests marked `cuda` are deselected."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    if HAS_GPU:
        return
    needing_gpu = [item for item in items if item.get_closest_marker("cuda")]
    if needing_gpu:
        items[:] = [item for item in items if not item.get_closest_marker("cuda")]
        config.hook.pytest_deselected(items=needing_gpu)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU if there is one, else the CPU with interpreted kernels."""
    return torch.device("cuda" if HAS_GPU and not INTERPRETED else "cpu")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poisoned_allocations() -> Iterator[None]:
    """Uninitialised memory of the library is NaN in every test."""
    from poison import poisoned_allocations

    with poisoned_allocations():
        yield
