"""What a server on this machine occupies, on the host and on its GPUs."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from urllib.parse import urlsplit

import psutil

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Memory:
    """In MiB; None where it cannot be known."""

    host: float | None
    device: float | None

    @property
    def words(self) -> str:
        known = {"host": self.host, "device": self.device}
        return ", ".join(f"{name} {size:,.0f} MiB" for name, size in known.items() if size)

    def growth(self, earlier: Memory) -> Memory:
        return Memory(_minus(self.host, earlier.host), _minus(self.device, earlier.device))


def measure(url: str) -> Memory:
    """Memory of the processes behind `url`, and of this process's GPUs, whoever uses them."""
    server = _listener(url)
    return Memory(_resident(server) if server else None, _on_devices() if server else None)


def _listener(url: str) -> psutil.Process | None:
    """The process that listens there, None if it is another machine's or user's."""
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        return None
    for process in psutil.process_iter():
        try:
            connections = process.net_connections("tcp")
        except psutil.Error:
            continue
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == parts.port:
                return process
    return None


def _resident(server: psutil.Process) -> float:
    """Of a server and its schedulers; pages that they share count once for each."""
    total = 0
    for process in (server, *server.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / MIB


def _on_devices() -> float | None:
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        query.append(f"--id={visible}")
    try:
        answer = subprocess.run(query, check=True, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return sum(float(line) for line in answer.stdout.split())


def _minus(now: float | None, before: float | None) -> float | None:
    return None if now is None or before is None else now - before
