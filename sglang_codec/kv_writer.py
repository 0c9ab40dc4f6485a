"""How a step's new keys and values get into SGLang's KV pool."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

from sglang_codec.kernels.again import alike
from sglang_codec.kernels.kv_store import store_kv
from sglang_codec.kernels.launch import LaunchConfig


class KVWriter:
    """Writes with SGLang's own pool or, where that does nothing else, with `store_kv`.

    PAC can then be launched while the newest tokens are being written: its programs set themselves
    up meanwhile.
    """

    def __init__(self, pool: Any, config: LaunchConfig) -> None:
        self._pool = pool
        self._launches: dict[Hashable, Callable[..., None] | None] = {}
        self._is_early = config.warp_roles and config.early_launch and _is_plain(pool)

    def write(self, layer: Any, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor) -> bool:
        """Put `k` and `v`, a row for each of ``slots [B]``, there; whether `store_kv` did it.

        The rows may come in any number of dimensions (``[B, Hkv * D]``, ``[1, B, Hkv, D]``).
        """
        k_buffer = self._pool.get_key_buffer(layer.layer_id)
        v_buffer = self._pool.get_value_buffer(layer.layer_id)
        k, v = _rows(k, slots, k_buffer), _rows(v, slots, v_buffer)
        if self._is_early:
            key = (k_buffer.data_ptr(), v_buffer.data_ptr(), alike(k, v, k_buffer, v_buffer, slots))
            if again := self._launches.get(key):
                again(k, v, slots)
                return True
            # no pool that is plain has values unlike its keys
            if k.shape == v.shape and _is_copied(k, k_buffer) and _is_copied(v, v_buffer):
                self._launches[key] = store_kv(k, v, k_buffer, v_buffer, slots, early_launch=True)
                return True
        self._pool.set_kv_buffer(layer, slots, k, v, layer.k_scale, layer.v_scale)
        return False


def _rows(new: torch.Tensor, slots: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """`new` as ``[B, Hkv, D]``, a row for each slot."""
    rows = slots.numel()
    if new.dim() == 3 and new.shape[0] == rows:
        return new
    return new.reshape(rows, *buffer.shape[-2:])


def _is_plain(pool: Any) -> bool:
    """The pool writes nothing but ``buffer[slots] = new``; what derives from it may write more."""
    return (
        type(pool) is MHATokenToKVPool
        and pool.kv_cache_layout == "nhd"
        and not pool.is_quantized_kv_cache
        and pool.store_dtype == pool.dtype
    )


def _is_copied(new: torch.Tensor, buffer: torch.Tensor) -> bool:
    """Whether storing is copying: rows of the same dtype and shape, contiguous on both sides."""
    return (
        new.dtype == buffer.dtype
        and new.shape[1:] == buffer.shape[1:]
        and new.stride()[1:] == buffer.stride()[1:] == (new.shape[2], 1)
    )
