"""How busy each process of a server and its client is: one that always is decides latencies."""

from __future__ import annotations

import statistics
import threading
from types import TracebackType
from typing import Self

import psutil

INTERVAL_S = 0.25
STREAMING = "detokenizer"  # runs only while tokens are on their way to clients


class Busy:
    """Watches the processes below this one for the length of a `with` block.

    A share is the part of one core that a process takes, its threads together.
    """

    def __init__(self, http_server: int) -> None:
        self._http_server, self._ends = http_server, threading.Event()
        self._samples: list[dict[str, float]] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._ends.set()
        self._thread.join()

    @property
    def shares(self) -> dict[str, float]:
        """Name -> its median share while tokens streamed, two digits; empty if none was seen to."""
        busy = [one for one in self._samples if one.get(STREAMING, 0.0) > 0.02]
        names = {name for one in busy for name in one}
        return {
            name: round(statistics.median(one.get(name, 0.0) for one in busy), 2)
            for name in sorted(names)
        }

    def _watch(self) -> None:
        known: dict[int, psutil.Process] = {}
        while not self._ends.wait(INTERVAL_S):
            sample: dict[str, float] = {}
            for process in psutil.Process().children(recursive=True):
                # the first reading of a process has nothing to compare with
                process = known.setdefault(process.pid, process)
                try:
                    share, name = process.cpu_percent() / 100, self._name(process)
                except psutil.Error:  # it has ended
                    continue
                sample[name] = sample.get(name, 0.0) + share
            self._samples.append(sample)

    def _name(self, process: psutil.Process) -> str:
        if process.pid == self._http_server:
            return "http server"
        title = " ".join(process.cmdline()).strip()
        if title.startswith("sglang::"):
            return title.removeprefix("sglang::").split("_")[0].split(":")[0]
        # what is neither SGLang's nor below its process is the fork that sends the requests
        above = {parent.pid for parent in process.parents()}
        return "other" if self._http_server in above else "client"
