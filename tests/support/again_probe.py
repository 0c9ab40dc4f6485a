"""Launches that are repeated pass what Triton's own would: run by `tests/kernels/test_again.py`.

In a process of its own, where Triton is not interpreted, with a driver that has no GPU and kernels
that are not compiled: what they are compiled for is their name, what they are given is kept.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from sglang_codec.attention import fill_kv_index, prefix_shared_attention
from sglang_codec.attention_shape import AttentionShape
from sglang_codec.buffers import PlanBuffers
from sglang_codec.kernels import por
from sglang_codec.kernels.launch import launch_config
from sglang_codec.kv_writer import KVWriter
from sglang_codec.planning.plan import PlanCapacity, PlanLayout

launched: list[Any] = []
KV_HEADS, DIM, SLOTS, ROWS = 2, 64, 40, 9
CAPABILITIES = {True: (9, 0), False: (8, 0)}


class Driver:
    """All that a launch asks of one."""

    capability = (9, 0)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 10 * self.capability[0], 32)

    def get_current_device(self) -> int:
        return self.capability[0]

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiled:
    """A kernel: `name` is all that Triton compiles it for."""

    function = packed_metadata = None

    def __init__(self, name: Any) -> None:
        self.name = name

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *given: launched.append((self.name, (*grid, 1, 1)[:3], flat(given)))

    def launch_metadata(self, *given: Any) -> None:
        pass

    def run(self, x: int, y: int, z: int, *given: Any) -> None:
        launched.append((self.name, (x, y, z), flat(given[6:])))


def compile_nothing(kernel: JITFunction, key: Any, signature: Any, device: int, *_: Any) -> Any:
    compiled = kernel.device_caches[device][0][key] = Compiled((kernel.__name__, key))
    return compiled


def flat(given: Any) -> list[Any]:
    """Numbers, addresses of tensors, and names, in order."""
    if isinstance(given, tuple):
        return [one for value in given for one in flat(value)]
    return [given.data_ptr() if isinstance(given, torch.Tensor) else given]


def rows_of(rows: int, heads: int, wider: int, first: int) -> torch.Tensor:
    """``[rows, heads, DIM]`` in rows that are `wider`, from element `first` on."""
    memory = torch.zeros(rows * (heads * DIM + wider) + first, dtype=torch.bfloat16)[first:]
    return memory.view(rows, -1)[:, : heads * DIM].view(rows, heads, DIM)


class Pool:
    def __init__(self, k: torch.Tensor, v: torch.Tensor) -> None:
        self.k, self.v = k, v

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        return self.k

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        return self.v


class Layer:
    layer_id, k_scale, v_scale = 0, None, None


memory = [torch.zeros(2 * SLOTS, KV_HEADS, DIM, dtype=torch.bfloat16) for _ in range(3)]
# of one address: all slots, and every other one
CACHES = [*memory, memory[0][::2], memory[1][: SLOTS + 1]]
cache = st.sampled_from(range(len(CACHES)))
width = st.sampled_from([0, 1, 8, 64])
SINKS = [None, memory[0][0, 0], memory[0][1, 0], memory[0][0, 0].view(torch.float16)]
layer = st.tuples(st.sampled_from(range(len(SINKS))), st.sampled_from([None, 30.0, 50.0]))
call = st.tuples(
    st.integers(1, ROWS), width, width, width, width, cache, cache, layer, st.booleans()
)


@settings(max_examples=150, deadline=None)
@given(
    st.booleans(),
    st.sampled_from([1, 4]),
    st.sampled_from([1, 1, 3]),
    st.lists(call, min_size=2, max_size=6),
)
def launches_are_the_same(roles: bool, group: int, query_rows: int, calls: list[Any]) -> None:
    Driver.capability = CAPABILITIES[roles]
    shape = AttentionShape.plain(group * KV_HEADS, KV_HEADS, DIM)
    shape = dataclasses.replace(shape, query_rows=query_rows)
    config = launch_config(Driver.capability, shape)
    capacity = PlanCapacity(rows=ROWS - 2, tasks=20, parts=30, kv_index=100)
    layout = PlanLayout(capacity, 3, len(config.tiles) + bool(config.bundle), bool(config.bundle))
    buffers = PlanBuffers(layout, shape, torch.device("cpu"))
    writers: dict[tuple[int, int], KVWriter] = {}
    for rows, q_wider, q_first, out_wider, out_first, k, v, (sinks, soft_cap), is_int32 in calls:
        if roles:  # rows begin at multiples of 16 bytes
            q_wider, q_first = q_wider // 8 * 8, q_first // 8 * 8
        if query_rows > 1:  # rows of the output follow their heads
            out_wider = 0
        q = rows_of(query_rows * rows, group * KV_HEADS, q_wider, q_first)
        out = rows_of(query_rows * rows, group * KV_HEADS, out_wider, out_first)

        of_layer = {"sinks": SINKS[sinks], "soft_cap": soft_cap}
        if sinks:
            of_layer["sinks"] = SINKS[sinks][: group * KV_HEADS]

        def attend(
            q: Any = q,
            out: Any = out,
            k: Any = CACHES[k],
            v: Any = CACHES[v],
            of_layer: Any = of_layer,
        ) -> None:
            given = {"sm_scale": 0.5, "config": config} | of_layer
            prefix_shared_attention(q, k, v, out, buffers, **given)

        check(attend, buffers.launches)
        writer = writers.setdefault((k, v), KVWriter(Pool(CACHES[k], CACHES[v]), config))
        writer._is_early = True
        new = rows_of(rows, KV_HEADS, q_wider, q_first), rows_of(rows, KV_HEADS, out_wider, 0)
        slots = torch.arange(rows, dtype=torch.int32 if is_int32 else torch.int64)
        check(lambda w=writer, n=new, s=slots: w.write(Layer, *n, s), writer._launches)


span = st.tuples(st.integers(1, 9), st.integers(0, 7), st.integers(1, 3000), st.booleans())


@settings(max_examples=50, deadline=None)
@given(st.lists(span, min_size=2, max_size=6))
def gathers_are_the_same(calls: list[Any]) -> None:
    shape = AttentionShape.plain(KV_HEADS, KV_HEADS, DIM)
    capacity = PlanCapacity(rows=ROWS, tasks=20, parts=30, kv_index=100)
    buffers = PlanBuffers(PlanLayout(capacity, 3, 2, False), shape, torch.device("cpu"))
    tables = [torch.zeros(4, wide, dtype=torch.int32) for wide in (17, 32)]
    for spans, first, longest, is_wide in calls:
        # a plan's spans begin anywhere in it
        memory = torch.zeros(4 * spans + first, dtype=torch.int32)[first:].view(spans, 4)
        rows = torch.zeros(spans, dtype=torch.int64 if first % 2 else torch.int32)
        check(
            lambda t=tables[is_wide], r=rows, m=memory, n=longest: fill_kv_index(
                buffers, t, r, m, longest=n
            ),
            buffers.launches,
        )


def check(launch: Any, kept: dict[Any, Any]) -> None:
    """What is launched with what was kept so far is what is launched with nothing kept."""
    before = dict(kept)
    launched.clear()
    launch()
    repeated = list(launched)
    kept.clear()
    launched.clear()
    launch()
    assert launched
    assert repeated == launched, f"{repeated}\n{launched}"
    kept.update(before)
    seen[len(before) > 0] += 1


seen = [0, 0]
driver.set_active(Driver())
JITFunction._do_compile = compile_nothing
por._most_programs = lambda device: 16
launches_are_the_same()
gathers_are_the_same()
print(f"{seen[1]} launches with some kept")
