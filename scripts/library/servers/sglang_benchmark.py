"""SGLang's own serving benchmark, in a fork of a process that has imported it: importing it takes
as long as a short run of it, and a benchmark has many runs.

It runs also where the package `datasets` is not installed, which SGLang's benchmark imports for a
data set of pictures that is not used here.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import multiprocessing
import os
import sys
import types
import warnings
from collections.abc import Sequence
from pathlib import Path

MODULE = "sglang.benchmark.serving"  # as a program: `python -m sglang.bench_serving`


def run_benchmark(words: Sequence[str], *, home: Path, log: Path, limit_s: float) -> int | None:
    """The exit status of the benchmark with these arguments; None if it took longer and was ended.

    Args:
        home: its home directory.
        log: where its output goes.
    """
    stand_in_for_datasets()
    with warnings.catch_warnings():
        # of kernels for other hardware
        warnings.simplefilter("ignore")
        importlib.import_module(MODULE)
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=_run, args=(words, home, log), daemon=True)
    process.start()
    try:
        process.join(limit_s)
        return process.exitcode
    finally:
        process.kill()
        process.join()


def _run(words: Sequence[str], home: Path, log: Path) -> None:
    os.environ["HOME"] = str(home)
    with log.open("w", buffering=1) as file:
        os.dup2(file.fileno(), sys.__stdout__.fileno())
        os.dup2(file.fileno(), sys.__stderr__.fileno())
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    sys.argv = [MODULE, *words]
    sys.modules[MODULE].cli_main()


def stand_in_for_datasets() -> None:
    """Let SGLang's benchmark be imported where the package is missing."""
    if importlib.util.find_spec("datasets") is None:
        stand_in = types.ModuleType("datasets")
        stand_in.__spec__ = importlib.machinery.ModuleSpec("datasets", loader=None)
        stand_in.load_dataset = None
        sys.modules["datasets"] = stand_in
