"""How fast a decode step can be: everything but attention as measured, and every KV byte once.

    bound_ms = base_ms + (kv_bytes - base_kv_bytes) / bandwidth / accept_length

- `base_ms`: TPOT of the row `short-B`, with the same batch size B, 8 tokens of context and nothing
  shared, measured in the same file: weights, launches, sampling, and everything else that does not
  grow with the context. The fastest backend of the file counts, the same for all backends.
- `kv_bytes`: bytes of the distinct KV tokens that a step of the row has to read, on one GPU, over
  all layers: those of all prompts, shared ones once, and what the requests had generated in the
  middle of the steady state.
- `base_kv_bytes`: the same of the row `short-B`, since its TPOT has them already.
- `accept_length`: tokens that a step yields a request, with speculation; 1 without.
- `bandwidth`: of a device-to-device copy, bytes read and written, measured by the same command
  (`library.attention.timing.ceilings`) or given as --bandwidth.

A bound is no prediction: attention that reads every byte once, at the speed of a copy, and that
costs nothing else on top of what attention costs over 8 tokens.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

from library.servers.backends import has_gpu

_BYTES = {"bfloat16": 2, "bf16": 2, "float16": 2, "half": 2, "float32": 4, "float": 4}
_BYTES |= {"fp8_e4m3": 1, "fp8_e5m2": 1}


def bound_of(row: dict, rows: list[dict], bandwidth_TBps: float | None) -> dict[str, Any] | None:
    """The terms of a row's bound, from the `short-B` rows beside it; None while there is none."""
    bases = [
        other
        for other in rows
        if other["workload"] == f"short-{row['batch']}"
        and other["variant"] == row["variant"]
        and other.get("tpot_ms")
    ]
    if not bases or not bandwidth_TBps or "kv_bytes_per_step" not in row:
        return None
    base = min(bases, key=lambda other: other["tpot_ms"])
    read, read_by_base = (r["kv_bytes_per_step"]["unique"] for r in (row, base))
    return {
        "base_ms": base["tpot_ms"],
        "base_backend": base["backend"],
        "base_kv_bytes": read_by_base,
        "kv_bytes": read,
        "bandwidth_TBps": bandwidth_TBps,
        "kv_ms": (read - read_by_base) / (bandwidth_TBps * 1e9) / (row.get("accept_length") or 1),
    }


def kv_bytes_per_token(config: dict[str, Any], server: dict[str, Any]) -> int:
    """Bytes of one token's K and V over all layers that see every token, on one GPU.

    Layers with a window read some of it too: a bound without them is one still.

    Args:
        config: the model's `config.json`.
        server: the server's own flags (`/server_info`).
    """
    config = config.get("text_config", config)
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    dtypes = (server.get("kv_cache_dtype"), server.get("dtype"), config.get("torch_dtype"))
    dtype = next((d for d in (*dtypes, config.get("dtype")) if d not in (None, "auto")), "bfloat16")
    if dtype not in _BYTES:
        raise ValueError(f"KV cache of type {dtype}: known are {', '.join(_BYTES)}")
    on_gpu = max(1, kv_heads // int(server.get("tp_size") or 1))
    kinds = config.get("layer_types") or ["full_attention"] * config["num_hidden_layers"]
    return 2 * kinds.count("full_attention") * on_gpu * head_dim * _BYTES[dtype]


def probe_gpus(gpus: Sequence[int]) -> dict[str, Any]:
    """The GPUs' name and the first one's copy bandwidth, measured in a process that ends before a
    server starts.

    Without a GPU: `cpu` and None.

    Raises:
        ValueError: if one is not there, or they differ.
    """
    if not has_gpu():
        return {"gpu": "cpu", "copy_TBps": None}
    names, copy_TBps = _in_a_process(_probe, list(gpus) or [0])
    if len(set(names)) > 1:
        raise ValueError(f"the GPUs are {', '.join(names)}: compare servers on equal ones")
    return {"gpu": names[0], "copy_TBps": copy_TBps}


def _in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _probe(gpus: Sequence[int]) -> tuple[list[str], float]:
    import torch
    from library.attention.timing import ceilings
    from library.results import gpu_name

    devices = [torch.device("cuda", gpu) for gpu in gpus]
    if max(gpus) >= (found := torch.cuda.device_count()):
        raise ValueError(f"there is no GPU {max(gpus)}: {found} are visible, from 0 on")
    torch.cuda.set_device(devices[0])
    return [gpu_name(device) for device in devices], ceilings(devices[0])["copy_TBps"]
