"""Writing a step's new keys and values to the KV pool, with PAC launched while it does."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _store_kv_kernel(
    k_ptr,  # [B, Hkv, D]
    v_ptr,  # [B, Hkv, D]
    k_buffer_ptr,  # [num_slots, Hkv, D]
    v_buffer_ptr,  # [num_slots, Hkv, D]
    slots_ptr,  # [B] integers
    k_row_stride,
    v_row_stride,
    k_slot_stride,
    v_slot_stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY_LAUNCH: tl.constexpr,
):
    """One program copies one row's key or value, all KV heads."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    within = at < WIDTH
    if EARLY_LAUNCH:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    slot = tl.load(slots_ptr + row).to(tl.int64)
    if tl.program_id(1) == 0:
        new = tl.load(k_ptr + row.to(tl.int64) * k_row_stride + at, mask=within)
        tl.store(k_buffer_ptr + slot * k_slot_stride + at, new, mask=within)
    else:
        new = tl.load(v_ptr + row.to(tl.int64) * v_row_stride + at, mask=within)
        tl.store(v_buffer_ptr + slot * v_slot_stride + at, new, mask=within)


def store_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    slots: torch.Tensor,
    *,
    early_launch: bool,
) -> None:
    """``k_buffer[slots], v_buffer[slots] = k, v``.

    Args:
        k, v: ``[B, Hkv, D]``, heads and dimensions contiguous, in the dtype of the buffers.
        k_buffer, v_buffer: ``[num_slots, Hkv, D]``, heads and dimensions contiguous.
        slots: ``[B]`` integer KV slots.
        early_launch: let the kernel behind, `pac`, be launched at once; it waits for the end of
            this one before it reads anything.
    """
    width = k.shape[1] * k.shape[2]
    _store_kv_kernel[(k.shape[0], 2)](
        k,
        v,
        k_buffer,
        v_buffer,
        slots,
        k.stride(0),
        v.stride(0),
        k_buffer.stride(0),
        v_buffer.stride(0),
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        EARLY_LAUNCH=early_launch,
        num_warps=4,
        **({"launch_pdl": True} if early_launch else {}),
    )
