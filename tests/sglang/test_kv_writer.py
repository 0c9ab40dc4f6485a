"""Which write of new keys and values is used, and that both write the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

from sglang_codec import kv_writer
from sglang_codec.attention_shape import AttentionShape
from sglang_codec.kernels.launch import INTERPRETED, launch_config
from sglang_codec.kv_writer import KVWriter

SHAPE = AttentionShape.plain(32, 8, 128)
HOPPER = launch_config((9, 0), SHAPE)
SLOTS, HEADS, HEAD_DIM = 30, 2, 16


class DerivedPool(MHATokenToKVPool):
    """A pool that may write more than its base, as SGLang's own derived pools do."""


def make_pool(
    kind: type[MHATokenToKVPool] = MHATokenToKVPool, dtype: torch.dtype = torch.float32
) -> MHATokenToKVPool:
    pool = kind(
        size=SLOTS,
        page_size=1,
        dtype=dtype,
        head_num=HEADS,
        head_dim=HEAD_DIM,
        layer_num=1,
        device="cpu",
        enable_memory_saver=False,
    )
    for buffer in (pool.get_key_buffer(0), pool.get_value_buffer(0)):
        buffer.zero_()
    return pool


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Calls of `store_kv`, which runs without its early launch: that needs a GPU."""
    calls: list[torch.Tensor] = []

    def store(*arguments: Any, early_launch: bool, **scales: float | None) -> None:
        assert early_launch
        calls.append(arguments[4])
        store_kv(*arguments, early_launch=False, **scales)

    store_kv = kv_writer.store_kv
    monkeypatch.setattr(kv_writer, "store_kv", store)
    return calls


def write(
    pool: MHATokenToKVPool,
    config: Any,
    dtype: torch.dtype = torch.float32,
    shape: tuple[int, ...] = (3, HEADS, HEAD_DIM),
) -> bool:
    """Write three rows, handed over in a shape, and check the pool."""
    wide = torch.randn(3, 3 * HEADS * HEAD_DIM).to(dtype)
    _, k, v = (part.view(3, HEADS, HEAD_DIM) for part in wide.chunk(3, 1))
    # as a rotary embedding leaves them: keys in memory of their own, values in the fused rows
    k = k.clone()
    slots = torch.tensor([7, 1, 30])
    layer = SimpleNamespace(layer_id=0, k_scale=None, v_scale=None)
    is_early = KVWriter(pool, config).write(layer, k.view(shape), v.reshape(shape), slots)
    for new, buffer in ((k, pool.get_key_buffer(0)), (v, pool.get_value_buffer(0))):
        expected = torch.zeros_like(buffer)
        expected[slots] = new.to(buffer.dtype)
        assert torch.equal(buffer, expected)
    return is_early


def test_a_plain_pool_is_written_early_where_pac_can_start_early(early: list) -> None:
    assert write(make_pool(), HOPPER)
    assert len(early) == 1


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kv_dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
# of bf16 the interpreter cuts bits off where it has to round
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_fp8_is_written_as_sglang_writes_it(
    dtype: torch.dtype, kv_dtype: torch.dtype, scaled: bool, early: list
) -> None:
    """Byte for byte, also numbers that are too large and those that are none."""
    scales = (0.3, 0.07) if scaled else (None, None)
    tensors = [scale and torch.tensor(scale) for scale in scales]
    layer = SimpleNamespace(layer_id=0, k_scale=tensors[0], v_scale=tensors[1])
    layer.k_scale_float, layer.v_scale_float = scales
    k, v = (30 * torch.randn(20, HEADS, HEAD_DIM) ** 3).to(dtype), torch.randn(20, HEADS, HEAD_DIM)
    k[3, 0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    v, slots, written = v.to(dtype), torch.randperm(SLOTS)[:20], []
    for config in (HOPPER, INTERPRETED):
        pool = make_pool(dtype=kv_dtype)
        is_early = KVWriter(pool, config).write(layer, k.clone(), v.clone(), slots)
        assert is_early == (config is HOPPER)
        written.append([pool.get_key_buffer(0), pool.get_value_buffer(0)])
    assert len(early) == 1
    for ours, theirs in zip(*written, strict=True):
        assert torch.equal(ours.float().nan_to_num(7e6), theirs.float().nan_to_num(7e6))


@pytest.mark.parametrize(
    "shape",
    [(3, HEADS * HEAD_DIM), (1, 3, HEADS, HEAD_DIM), (1, 3, HEADS * HEAD_DIM)],
    ids=str,
)
@pytest.mark.parametrize("config", [HOPPER, INTERPRETED], ids=["early", "by SGLang"])
def test_rows_come_in_any_number_of_dimensions(
    shape: tuple[int, ...], config: Any, early: list
) -> None:
    assert write(make_pool(), config, shape=shape) == (config is HOPPER) == len(early)


def test_rows_without_a_slot_are_refused(early: list) -> None:
    pool, layer = make_pool(), SimpleNamespace(layer_id=0, k_scale=None, v_scale=None)
    rows = torch.ones(4, HEADS, HEAD_DIM)
    for slots in (3, 5):
        with pytest.raises(RuntimeError, match="invalid for input of size"):
            KVWriter(pool, HOPPER).write(layer, rows, rows, torch.arange(slots))
    assert not pool.get_key_buffer(0).any()


def test_without_warp_roles_sglang_writes(early: list) -> None:
    for config in (INTERPRETED, launch_config((9, 0), SHAPE, warp_roles=False)):
        assert not write(make_pool(), config)
    assert not early


def test_a_derived_pool_writes_itself(early: list) -> None:
    assert not write(make_pool(DerivedPool), HOPPER)
    assert not early


def test_sglang_converts_to_the_pools_dtype(early: list) -> None:
    assert not write(make_pool(), HOPPER, torch.float64)
    assert not early
