"""K and V of one byte an element: how the kernels read them, in any dtype and on any GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# bits of the exponent of what a KV pool may hold; 0 stands for the dtype of the queries
EXPONENTS = {torch.float8_e4m3fn: 4, torch.float8_e5m2: 5}


def exponent_bits(kv_dtype: torch.dtype, q_dtype: torch.dtype) -> int | None:
    """How K and V of a dtype are read beside queries of another; None if they cannot be."""
    return 0 if kv_dtype == q_dtype else EXPONENTS.get(kv_dtype)


@triton.jit
def widened(values, dtype: tl.constexpr, EXPONENT: tl.constexpr):
    """Bytes of fp8 as `dtype`, every one of them exactly; without an exponent `values` as they are.

    The bits move to where fp32 has them, which scales what they stand for by a power of two.
    """
    if EXPONENT != 0:
        magnitude = values & 0x7F
        # an exponent of ones is for infinities and NaNs; e4m3 has one NaN, and numbers beside it
        is_number = magnitude < (0x7F if EXPONENT == 4 else 0x7C)
        bits = magnitude.to(tl.uint32) << (16 + EXPONENT)
        bits = tl.where(is_number, bits, bits | 0x7F800000) | ((values & 0x80).to(tl.uint32) << 24)
        scale: tl.constexpr = 2.0 ** (128 - 2 ** (EXPONENT - 1))
        values = (bits.to(tl.float32, bitcast=True) * scale).to(dtype)
    return values


@triton.jit
def narrowed(values, EXPONENT: tl.constexpr):
    """fp32 as bytes of fp8, to the nearest and of two to the even one, as torch converts them.

    What is too large becomes the largest number of e4m3, and the infinity of e5m2.
    """
    DROPPED: tl.constexpr = 16 + EXPONENT  # bits that fp32 has more of a fraction
    LEAST: tl.constexpr = 2.0 ** (2 - 2 ** (EXPONENT - 1))  # normal number
    LARGEST: tl.constexpr = 0x7E if EXPONENT == 4 else 0x7C
    bits = values.to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    size = magnitude.to(tl.float32, bitcast=True)
    # the exponent counts from another number; half a step more, or nearly, rounds
    odd = (magnitude >> DROPPED) & 1
    rebased = magnitude - ((128 - 2 ** (EXPONENT - 1)) << 23)
    normal = (rebased + odd + ((1 << (DROPPED - 1)) - 1)) >> DROPPED
    # where steps are of one size, adding a number whose steps are of that size rounds
    STEPS: tl.constexpr = LEAST * 2.0**DROPPED
    small = (size + STEPS).to(tl.uint32, bitcast=True) - tl.full([], STEPS, tl.float32).to(
        tl.uint32, bitcast=True
    )
    found = tl.where(size < LEAST, small, tl.where(size >= 65536.0, LARGEST, normal))
    found = tl.where(found < LARGEST, found, LARGEST)
    found = tl.where(magnitude > 0x7F800000, 0x7F, found)
    return (found | ((bits >> 24) & 0x80)).to(tl.uint8)
