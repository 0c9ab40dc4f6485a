"""SGLang's `attention_unittest` kit for dense attention, with the backend name `codec`.

The kit makes a backend for a mock model runner and compares decode, extend and replays of padded
batches with attention in torch. Its cases and its functions are used as they are.
"""

from __future__ import annotations

import os
import unittest
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

HEAD_DIMS = (64, 128)
LAYOUTS = ("contiguous", "shuffled_pages", "interleaved_pages", "non_monotonic_extend")


@dataclass(frozen=True, slots=True)
class Device:
    """Where the cases run, in which dtype (a name of torch), and which backend prefills.

    `backend` is the one under test: codec, or for comparison the one that prefills for it.
    """

    name: str
    dtype: str
    prefill: str
    backend: str = "codec"


def dense_case(device: Device) -> type[unittest.TestCase]:
    """A test for every case, head dimension and layout, eager and replayed."""
    from sglang.srt.plugins import load_plugins

    os.environ["SGLANG_CODEC_PREFILL_BACKEND"] = device.prefill
    load_plugins()
    _declare_layers()
    tests = {name: _method(call) for name, call in _calls(device)}
    return type("AttentionUnittest", (unittest.TestCase,), tests)


def _calls(device: Device) -> Iterator[tuple[str, Callable[[unittest.TestCase], None]]]:
    import torch
    from sglang.test.kits.attention_unittest.attention_methods import dense_attention
    from sglang.test.kits.attention_unittest.runner_modes import cuda_graph_decode_runner

    where = {"device": device.name, "dtype": getattr(torch, device.dtype)}
    for case, dim in product(dense_attention.make_dense_cases(device.backend), HEAD_DIMS):
        options = where | {"head_dim": dim}
        for layout in LAYOUTS:
            yield (
                f"test_{case.name}_{dim}_{layout}",
                _bound(
                    dense_attention.run_dense_attention_case, case, loc_layout=layout, **options
                ),
            )
        if case.forward_mode.is_decode():
            run = cuda_graph_decode_runner.run_dense_cuda_graph_decode_case
            yield f"test_{case.name}_{dim}_replay", _bound(run, case, **options)


def _bound(run: Callable[..., None], case: Any, **options: Any) -> Callable[..., None]:
    return lambda testcase: run(testcase, case, **options)


def _method(call: Callable[[unittest.TestCase], None]) -> Callable[[unittest.TestCase], None]:
    def test(self: unittest.TestCase) -> None:
        import torch

        # as a server does; pools on the CPU are written in place
        with torch.no_grad():
            call(self)

    return test


def _declare_layers() -> None:
    """Give the kit's mock models the attention layer that a loaded model has.

    The mock's model is an empty module, its layer is made after the backend; codec looks at the
    layers of the model when it starts, and refuses a model that has none.
    """
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
    from sglang.srt.layers.radix_attention import RadixAttention

    factory = ATTENTION_BACKENDS["codec"]

    def with_layer(runner: Any) -> Any:
        config = runner.model_config
        if not any(isinstance(module, RadixAttention) for module in runner.model.modules()):
            runner.model.attention = RadixAttention(
                num_heads=config.num_attention_heads,
                head_dim=config.head_dim,
                scaling=config.head_dim**-0.5,
                num_kv_heads=config.num_key_value_heads,
                layer_id=0,
            )
        return factory(runner)

    ATTENTION_BACKENDS["codec"] = with_layer
