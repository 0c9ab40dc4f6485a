"""What became of each test, written down at once: a test that ends the process is known by name."""

from __future__ import annotations

import json
import time
import unittest
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REASON_LENGTH = 400


@dataclass(frozen=True, slots=True)
class Outcome:
    """One test of a kit; `outcome` is passed, failed, skipped or unfinished."""

    test: str
    outcome: str
    seconds: float = 0.0
    reason: str = ""

    @property
    def is_bad(self) -> bool:
        return self.outcome in ("failed", "unfinished")


class Recorder(unittest.TestResult):
    """Appends a line to a file when a test starts and when it ends."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        self._found = ("passed", "")

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._found, self._started = ("passed", ""), time.monotonic()
        self._write(Outcome(_name(test), "unfinished"))

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        kind, reason = self._found
        self._write(Outcome(_name(test), kind, time.monotonic() - self._started, reason))

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        self._fail(err)

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        self._fail(err)

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:
            self._fail(err)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._found = ("skipped", reason)

    def _fail(self, err: Any) -> None:
        kind, value, _ = err
        self._found = ("failed", " ".join(f"{kind.__name__}: {value}".split())[:REASON_LENGTH])

    def _write(self, outcome: Outcome) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")


def run_recorded(case: type[unittest.TestCase], file: Path) -> None:
    """Run all tests of a class; those that are never reached are in the file as unfinished."""
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(case)
    recorder = Recorder(file)
    for test in suite:
        recorder._write(Outcome(_name(test), "unfinished", reason="not reached"))
    suite.run(recorder)


def read_outcomes(file: Path, why_unfinished: str) -> list[Outcome]:
    """The last word on every test; unfinished ones get a reason."""
    lines = file.read_text().splitlines() if file.exists() else []
    last = {line["test"]: line for line in map(json.loads, lines)}
    return [Outcome(**(entry | _reason(entry, why_unfinished))) for entry in last.values()]


def _reason(entry: dict[str, Any], why: str) -> dict[str, str]:
    if entry["outcome"] != "unfinished":
        return {}
    return {"reason": f"{entry['reason']}: {why}" if entry["reason"] else why}


def counts(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many tests ran, passed, failed, were skipped or did not finish."""
    kinds = [outcome.outcome for outcome in outcomes]
    found = {kind: kinds.count(kind) for kind in ("passed", "failed", "skipped", "unfinished")}
    return {"run": len(kinds) - found["skipped"]} | found


def _name(test: unittest.TestCase) -> str:
    return test._testMethodName
