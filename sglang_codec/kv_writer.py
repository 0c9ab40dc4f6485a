"""How a step's new keys and values get into SGLang's KV pool."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from sglang.srt.mem_cache.memory_pool import KVWriteLoc, MHATokenToKVPool

from sglang_codec.attention_layers import scales_of
from sglang_codec.kernels.again import alike
from sglang_codec.kernels.fp8 import EXPONENTS, exponent_bits
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

    def write(
        self,
        layer: Any,
        k: torch.Tensor,
        v: torch.Tensor,
        slots: torch.Tensor,
        in_window_pool: torch.Tensor | None = None,
    ) -> bool:
        """Put `k` and `v`, a row for each of ``slots [B]``, there; whether `store_kv` did it.

        The rows may come in any number of dimensions (``[B, Hkv * D]``, ``[1, B, Hkv, D]``).

        Args:
            in_window_pool: ``[B]`` the slots' places where the layer is in the window pool.
        """
        k_buffer = self._pool.get_key_buffer(layer.layer_id)
        v_buffer = self._pool.get_value_buffer(layer.layer_id)
        k, v = _rows(k, slots, k_buffer), _rows(v, slots, v_buffer)
        if self._is_early:
            scales = scales_of(layer) if k_buffer.dtype in EXPONENTS else (None, None)
            of_tensors = alike(k, v, k_buffer, v_buffer, slots)
            key = (k_buffer.data_ptr(), v_buffer.data_ptr(), scales, of_tensors)
            if again := self._launches.get(key):
                again(k, v, slots)
                return True
            # no pool that is plain has values unlike its keys
            if k.shape == v.shape and _is_copied(k, k_buffer) and _is_copied(v, v_buffer):
                by = dict(zip(("k_scale", "v_scale"), scales, strict=True))
                self._launches[key] = store_kv(
                    k, v, k_buffer, v_buffer, slots, early_launch=True, **by
                )
                return True
        where = slots if in_window_pool is None else KVWriteLoc(slots, in_window_pool)
        self._pool.set_kv_buffer(layer, where, k, v, layer.k_scale, layer.v_scale)
        return False


def _rows(new: torch.Tensor, slots: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """`new` as ``[B, Hkv, D]``, a row for each slot."""
    rows = slots.numel()
    if new.dim() == 3 and new.shape[0] == rows:
        return new
    return new.reshape(rows, *buffer.shape[-2:])


def _is_plain(pool: Any) -> bool:
    """The pool writes what `store_kv` does and no more; what derives from it may write more."""
    return (
        type(pool) is MHATokenToKVPool
        and pool.kv_cache_layout == "nhd"
        and not pool.is_quantized_kv_cache
        and (pool.store_dtype == pool.dtype or pool.dtype in EXPONENTS)
    )


def _is_copied(new: torch.Tensor, buffer: torch.Tensor) -> bool:
    """Whether rows are stored as they are or in fp8: of one shape, contiguous on both sides."""
    return (
        exponent_bits(buffer.dtype, new.dtype) is not None
        and new.shape[1:] == buffer.shape[1:]
        and new.stride()[1:] == buffer.stride()[1:] == (new.shape[2], 1)
    )
