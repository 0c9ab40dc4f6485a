"""Starts an engine, or reaches a server, for each thing to compare."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.servers.clients import Client, EngineClient, ServerClient
from library.servers.encoders import Encoder, make_encoder
from library.servers.logs import quiet_engines
from library.servers.sharing import request_dump

# a machine without a GPU: fp32, and a KV pool that is not sized from the memory
CPU_ENGINE: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "max_total_tokens": 8192,
    "max_running_requests": 16,
    "context_length": 2048,
    "disable_cuda_graph": True,
}


@dataclass(frozen=True, slots=True)
class Target:
    """A client under the name it has in the results."""

    name: str
    client: Client
    startup_s: float | None
    dump: Path | None


def has_gpu() -> bool:
    """True if torch can use a CUDA device."""
    import torch

    return torch.cuda.is_available()


def gpu_name() -> str:
    """The first GPU's name, `cpu` without one."""
    import torch

    return torch.cuda.get_device_name() if has_gpu() else "cpu"


def engine_arguments(
    model: str, backend: str, settings: dict[str, Any], *, gpu: bool
) -> dict[str, Any]:
    """Arguments of `sglang.Engine` for one backend; `settings` win over the defaults."""
    arguments: dict[str, Any] = {
        "model_path": model,
        "skip_tokenizer_init": True,
        "grammar_backend": "none",
        "log_level": "warning",
        "random_seed": 0,
    }
    if not gpu:
        arguments |= CPU_ENGINE
    prefill, _, decode = backend.partition("/")
    if decode:
        arguments |= {"prefill_attention_backend": prefill, "decode_attention_backend": decode}
    else:
        arguments["attention_backend"] = backend
    return arguments | settings


def prepare_environment(model: str, *, gpu: bool) -> None:
    """Variables that SGLang's processes inherit; set by the user, they stay as they are."""
    if Path(model).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not gpu:
        os.environ.setdefault("TRITON_INTERPRET", "1")


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
def running_server(url: str, label: str, dump: Path | None) -> Iterator[Target]:
    """A server that somebody else started; it stays up."""
    client = ServerClient(url)
    info = client.info()
    backend = info.get("decode_attention_backend") or info.get("attention_backend")
    yield Target(f"{backend}{label}", client, None, dump)


def openings(args: argparse.Namespace, directory: Path) -> Iterator[AbstractContextManager[Target]]:
    """What to compare, to be entered one after the other: at most one engine lives at a time."""
    for number, url in enumerate(args.url or []):
        label = f" #{number + 1}" if len(args.url) > 1 else ""
        yield running_server(url, label, args.dump)
    for number, backend in enumerate([] if args.url else args.backend):
        dump = directory / f"dump-{number}.json"
        yield started_engine(args.model, backend, dict(args.engine), dump)


def encoder_for(args: argparse.Namespace) -> Encoder:
    """The tokenizer of --model, or of the first server."""
    model = args.model
    if not model:
        info = ServerClient(args.url[0]).info()
        model = info.get("tokenizer_path") or info["model_path"]
    return make_encoder(model, token_ids=args.token_ids)
