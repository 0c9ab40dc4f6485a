"""Writing a step's new keys and values to the KV pool, with PAC launched while it does."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from sglang_codec.kernels.fp8 import exponent_bits, narrowed
from sglang_codec.kernels.given import refuse


@triton.jit
def _as_stored(new, scale, EXPONENT: tl.constexpr):
    """What SGLang's own write makes of new values: divided in their dtype, then made fp8.

    By a scale of fp32; on a GPU torch rounds it to the dtype first, unlike whoever reads.
    """
    if EXPONENT != 0:
        wide = new.to(tl.float32)
        if scale is not None:
            wide = tl.div_rn(wide, scale).to(new.dtype).to(tl.float32)
        new = narrowed(wide, EXPONENT)
    return new


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
    k_scale,  # what fp8 is divided by before; None for 1
    v_scale,
    EXPONENT: tl.constexpr,  # bits of it where the buffers are bytes of fp8, else 0
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY_LAUNCH: tl.constexpr,
):
    """One program copies one row's key or value, all KV heads, as what the buffers hold."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    within = at < WIDTH
    if EARLY_LAUNCH:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    slot = tl.load(slots_ptr + row).to(tl.int64)
    if tl.program_id(1) == 0:
        new = tl.load(k_ptr + row.to(tl.int64) * k_row_stride + at, mask=within)
        new = _as_stored(new, k_scale, EXPONENT)
        tl.store(k_buffer_ptr + slot * k_slot_stride + at, new, mask=within)
    else:
        new = tl.load(v_ptr + row.to(tl.int64) * v_row_stride + at, mask=within)
        new = _as_stored(new, v_scale, EXPONENT)
        tl.store(v_buffer_ptr + slot * v_slot_stride + at, new, mask=within)


def store_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    slots: torch.Tensor,
    *,
    early_launch: bool,
    k_scale: float | None = None,
    v_scale: float | None = None,
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None] | None:
    """``k_buffer[slots], v_buffer[slots] = k, v``, or of fp8 buffers ``k / k_scale, v / v_scale``.

    Args:
        k, v: ``[B, Hkv, D]``, heads and dimensions contiguous, in the dtype of the buffers unless
            that is fp8.
        k_buffer, v_buffer: ``[num_slots, Hkv, D]``, heads and dimensions contiguous.
        k_scale, v_scale: None for 1.
        slots: ``[B]`` integer KV slots, contiguous: how many rows are written.
        early_launch: let the kernel behind, `pac`, be launched at once; it waits for the end of
            this one before it reads anything.

    Returns:
        The same launch for other `k`, `v` and `slots` that are `alike`, of any number of rows; None
        where nothing is compiled.

    Raises:
        ValueError: rows, shapes, dtypes or strides that do not match.
    """
    rows = slots.numel()
    shape, (_, *k_row), (_, *v_row) = k.shape, k_buffer.shape, v_buffer.shape
    exponent = exponent_bits(k_buffer.dtype, k.dtype)
    strides = (*k.stride(), *v.stride(), *k_buffer.stride(), *v_buffer.stride())
    if not (
        len(shape) == 3
        and shape == v.shape == (rows, *k_row)
        and k_row == v_row
        and k.dtype == v.dtype
        and k_buffer.dtype == v_buffer.dtype
        and exponent is not None
        and strides[1::3] == (shape[2],) * 4
        and strides[2::3] == (1, 1, 1, 1)
        and slots.dim() == 1
        and slots.is_contiguous()
    ):
        refuse(
            "store_kv",
            "k and v [rows, Hkv, D] for as many slots, and buffers [num_slots, Hkv, D], of one "
            "dtype or buffers in fp8, heads and dimensions contiguous",
            k=k,
            v=v,
            k_buffer=k_buffer,
            v_buffer=v_buffer,
            slots=slots,
        )
    width = shape[1] * shape[2]
    sizes = width, triton.next_power_of_2(width), early_launch
    fixed = (*strides[0::3], k_scale, v_scale, exponent, *sizes)
    if exponent:
        k_buffer, v_buffer = k_buffer.view(torch.uint8), v_buffer.view(torch.uint8)
    compiled = _store_kv_kernel[(rows, 2)](
        k,
        v,
        k_buffer,
        v_buffer,
        slots,
        *fixed,
        num_warps=4,
        **({"launch_pdl": True} if early_launch else {}),
    )
    if compiled is None:
        return None
    buffers = k_buffer.data_ptr(), v_buffer.data_ptr()

    def again(k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor) -> None:
        grid = (slots.shape[0], 2, 1)
        compiled[grid](k.data_ptr(), v.data_ptr(), *buffers, slots.data_ptr(), *fixed)

    return again
