"""Starts an engine, or reaches a server, for each thing to compare."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.servers.backends import (
    backend_arguments,
    has_gpu,
    machine_arguments,
    prepare_environment,
)
from library.servers.clients import Client, EngineClient, ServerClient
from library.servers.encoders import Encoder, make_encoder
from library.servers.logs import quiet_engines
from library.servers.sharing import request_dump


@dataclass(frozen=True, slots=True)
class Target:
    """A client under the name it has in the results."""

    name: str
    client: Client
    startup_s: float | None
    dump: Path | None


def engine_arguments(
    model: str, backend: str, settings: dict[str, Any], *, gpu: bool
) -> dict[str, Any]:
    """Arguments of `sglang.Engine` for one backend; `settings` win over the defaults."""
    arguments = {"model_path": model, "skip_tokenizer_init": True, "log_level": "warning"}
    return arguments | machine_arguments(gpu=gpu) | backend_arguments(backend) | settings


@contextmanager
def started_engine(
    model: str, backend: str, settings: dict[str, Any], dump: Path
) -> Iterator[Target]:
    """An engine in this process, shut down on leaving."""
    gpu = has_gpu()
    prepare_environment(model, gpu=gpu)
    if "log_level" not in settings:
        quiet_engines(dump.parent, gpu=gpu)
    request_dump(dump)
    started = time.perf_counter()
    from sglang import Engine

    engine = Engine(**engine_arguments(model, backend, settings, gpu=gpu))
    try:
        startup_s = time.perf_counter() - started
        yield Target(backend, EngineClient(engine), startup_s, dump)
    finally:
        engine.shutdown()


@contextmanager
def reached_server(url: str, label: str) -> Iterator[Target]:
    """A server that somebody else started; it stays up."""
    client = ServerClient(url)
    info = client.info()
    backend = info.get("decode_attention_backend") or info.get("attention_backend")
    yield Target(f"{backend}{label}", client, None, None)


def openings(args: argparse.Namespace, directory: Path) -> Iterator[AbstractContextManager[Target]]:
    """What to compare, to be entered one after the other: at most one engine lives at a time."""
    for number, url in enumerate(args.url or []):
        label = f" #{number + 1}" if len(args.url) > 1 else ""
        yield reached_server(url, label)
    for number, backend in enumerate([] if args.url else args.backend):
        dump = directory / f"dump-{number}.json"
        yield started_engine(args.model, backend, dict(args.engine), dump)


def encoder_for(args: argparse.Namespace) -> Encoder:
    """The tokenizer of --model, or of the first server."""
    model = args.model
    if not model:
        info = ServerClient(args.url[0]).info()
        model = info.get("tokenizer_path") or info["model_path"]
    return make_encoder(model)
