"""A real SGLang server on the CPU, in its own process group, for the length of a `with` block."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CPU_FLAGS = (
    "--device=cpu",
    "--dtype=float32",
    "--max-total-tokens=4096",
    "--max-running-requests=16",
    "--context-length=2048",
    "--disable-cuda-graph",
    "--grammar-backend=none",
    "--skip-tokenizer-init",
    "--skip-server-warmup",
    "--random-seed=0",
)
START_LIMIT_S = 240
STOP_LIMIT_S = 20


@dataclass(frozen=True, slots=True)
class RunningServer:
    """Where a server listens, what it has logged, and the codec dump it writes."""

    url: str
    log: Path
    dump: Path


def cpu_environment(**variables: str) -> dict[str, str]:
    """The environment of an SGLang process on a machine without a GPU."""
    return os.environ | {"TRITON_INTERPRET": "1", "HF_HUB_OFFLINE": "1"} | variables


@contextmanager
def sglang_server(
    model: Path,
    backend: str,
    folder: Path,
    *,
    flags: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Iterator[RunningServer]:
    """Start a server, wait until it answers, and end its whole process group afterwards.

    Raises:
        RuntimeError: with the end of its log, if it ends or does not answer in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    server = RunningServer(f"http://127.0.0.1:{port}", folder / "server.log", folder / "dump.json")
    command = [sys.executable, "-m", "sglang.launch_server", f"--model-path={model}"]
    command += [f"--attention-backend={backend}", f"--port={port}", *CPU_FLAGS, *flags]
    environment = cpu_environment(SGLANG_CODEC_DUMP=str(server.dump), **(variables or {}))
    with server.log.open("w") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(process, server)
        yield server
    finally:
        _end(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_ready(process: subprocess.Popen, server: RunningServer) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{_tail(server.log)}")
        try:
            with urllib.request.urlopen(f"{server.url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        time.sleep(0.5)
    raise RuntimeError(f"no answer within {START_LIMIT_S} s:\n{_tail(server.log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]


def _end(process: subprocess.Popen) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
