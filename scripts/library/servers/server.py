"""One SGLang server at a time, in a process group of its own, for the length of a `with` block."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from library.servers.backends import as_flags, backend_arguments

PROGRAM = ("-m", "sglang.launch_server")
STOP_LIMIT_S = 20
TAIL_CHARACTERS = 3000


class ServerFailed(RuntimeError):
    """A server ended or did not answer in time; the message has the end of its log."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    url: str
    log: Path
    startup_s: float
    process: subprocess.Popen

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def log_since(self, place: int) -> str:
        with self.log.open("rb") as file:
            file.seek(place)
            return file.read().decode(errors="replace")

    def log_end(self) -> int:
        return self.log.stat().st_size


@contextmanager
def running_server(
    backend: str,
    flags: Sequence[str],
    folder: Path,
    *,
    start_limit_s: float,
) -> Iterator[Server]:
    """Start a server, wait until it answers, and end its whole process group afterwards.

    Raises:
        ServerFailed: if it ends or does not answer within the limit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log, port = folder / f"server-{backend.replace('/', '-')}.log", _free_port()
    command = [sys.executable, *PROGRAM, *as_flags(backend_arguments(backend))]
    command += ["--host=127.0.0.1", f"--port={port}", *flags]
    started = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(process, url, log, started + start_limit_s)
        yield Server(url, log, time.monotonic() - started, process)
    finally:
        end(process)


def leave_on_sigterm() -> None:
    """Let SIGTERM end this program through its `with` blocks, which end its servers."""
    signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, _frame: object) -> None:
    # a second one would end those blocks before the servers are gone
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def tail(log: Path) -> str:
    """The end of a log, under its name."""
    text = log.read_text(errors="replace")[-TAIL_CHARACTERS:] if log.exists() else ""
    return f"--- end of {log.name} ---\n{text.strip()}\n---"


def cause(log: Path) -> str:
    """The last exception or complaint about an option that a log shows, in one line."""
    text = log.read_text(errors="replace") if log.exists() else ""
    # the last three are codec's own: what it refuses at start-up
    kinds = "Error|Exception|Configuration|SGLang|Mismatch"
    found = re.findall(rf"^(?:[\w.]*(?:{kinds})|[\w. ]+: error): .*$", text, re.MULTILINE)
    return found[-1] if found else "its log does not say why"


def reason(message: str) -> str:
    """The first line of a message, with file names in place of absolute paths."""
    first = message.strip().splitlines()[0] if message.strip() else "no reason given"
    return re.sub(r"(?<![:/\w.])/(?:[\w.+-]+/)+", "", first)[:300]


def end(process: subprocess.Popen) -> None:
    """Ask the process group to end, then kill what is left of it."""
    _signal(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_LIMIT_S)
    # the schedulers may outlive the process that started them, and they hold the GPU's memory
    for _ in range(10):
        if not _signal(process, signal.SIGKILL):
            break
        time.sleep(0.5)
    process.wait()


def _signal(process: subprocess.Popen, number: int) -> bool:
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_ready(process: subprocess.Popen, url: str, log: Path, deadline: float) -> None:
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailed(
                f"the server ended with {process.returncode}: {cause(log)}\n{tail(log)}"
            )
        with (
            suppress(urllib.error.URLError, ConnectionError, TimeoutError),
            urllib.request.urlopen(f"{url}/health", timeout=5) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.5)
    raise ServerFailed(f"the server did not answer in time (--start-limit)\n{tail(log)}")
