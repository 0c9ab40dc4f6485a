"""How a step's new keys and values get into SGLang's KV pool."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

from sglang_codec.kernels.kv_store import store_kv
from sglang_codec.kernels.launch import LaunchConfig


class KVWriter:
    """Writes with SGLang's own pool or, where that does nothing else, with `store_kv`.

    PAC can then be launched while the newest tokens are being written: its programs set themselves
    up meanwhile.
    """

    def __init__(self, pool: Any, config: LaunchConfig) -> None:
        self._pool = pool
        self._is_early = config.warp_roles and config.early_launch and _is_plain(pool)

    def write(self, layer: Any, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor) -> bool:
        """Put ``k, v [B, Hkv, D]`` at ``slots [B]``; whether this was done by `store_kv`."""
        k_buffer = self._pool.get_key_buffer(layer.layer_id)
        v_buffer = self._pool.get_value_buffer(layer.layer_id)
        if not (self._is_early and _has_rows_of(k, k_buffer) and _has_rows_of(v, v_buffer)):
            self._pool.set_kv_buffer(layer, slots, k, v, layer.k_scale, layer.v_scale)
            return False
        store_kv(k, v, k_buffer, v_buffer, slots, early_launch=True)
        return True


def _is_plain(pool: Any) -> bool:
    """The pool writes nothing but ``buffer[slots] = new``; what derives from it may write more."""
    return (
        type(pool) is MHATokenToKVPool
        and pool.kv_cache_layout == "nhd"
        and not pool.is_quantized_kv_cache
        and pool.store_dtype == pool.dtype
    )


def _has_rows_of(new: torch.Tensor, buffer: torch.Tensor) -> bool:
    """Same dtype and shape of a row, and contiguous rows on both sides."""
    return (
        new.dtype == buffer.dtype
        and new.shape[1:] == buffer.shape[1:]
        and new.stride()[1:] == buffer.stride()[1:] == (new.shape[2], 1)
    )
