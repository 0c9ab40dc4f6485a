"""Kits run in a process of their own: a crash or a hang costs one kit, not the run."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import TestCase

from kits.outcomes import Outcome, read_outcomes, run_recorded

# spawned, since SGLang's modules touch CUDA when they are imported
_CONTEXT = multiprocessing.get_context("spawn")


class Worker:
    """One process that runs a kit after the other; it is replaced when it hangs or dies."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: Any = None
        folder.mkdir(parents=True, exist_ok=True)

    def run(
        self, name: str, make: Callable[..., type[TestCase]], target: Any, limit_s: float
    ) -> tuple[list[Outcome], str]:
        """Outcomes of all tests of `make(target)`, and what they printed."""
        lines, log = self._folder / f"{name}.jsonl", self._folder / f"{name}.log"
        lines.unlink(missing_ok=True)
        if self._process is None or not self._process.is_alive():
            self._start()
        self._pipe.send((make, target, lines, log))
        why = self._wait(limit_s)
        printed = log.read_text(errors="replace") if log.exists() else ""
        outcomes = read_outcomes(lines, why)
        if not outcomes:
            outcomes = [Outcome("(the kit as a whole)", "failed", reason=why or "it has no test")]
        return outcomes, printed

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def _start(self) -> None:
        self._pipe, other = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_work, args=(other,), daemon=True)
        self._process.start()
        other.close()

    def _wait(self, limit_s: float) -> str:
        """Why not all tests have finished, empty if they have."""
        try:
            if self._pipe.poll(limit_s):
                return self._pipe.recv()
            why = f"stopped after {limit_s:.0f} s"
        except EOFError:
            self._process.join()
            why = f"the process that ran it ended with {self._process.exitcode}"
        self.close()
        return why


def _work(pipe: Connection) -> None:
    while True:
        try:
            make, target, lines, log = pipe.recv()
        except EOFError:
            return
        with log.open("w", buffering=1) as file, _output_to(file):
            try:
                run_recorded(make(target), lines)
                why = ""
            except Exception as error:  # the kit cannot even be built: that is its outcome
                traceback.print_exc()
                why = f"{type(error).__name__}: {error}"
        pipe.send(why)


@contextlib.contextmanager
def _output_to(file: Any) -> Any:
    """Also what extension modules print."""
    sys.stdout.flush()
    saved = os.dup(1), os.dup(2)
    try:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        yield
    finally:
        sys.stdout.flush()
        for number, old in zip((1, 2), saved, strict=True):
            os.dup2(old, number)
            os.close(old)
