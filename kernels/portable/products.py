"""The second matrix product."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_values(accumulator, weights, v, EXACT_WEIGHTS: tl.constexpr):
    """`accumulator` plus weights times values, the weights rounded to the dtype of the values.

    With exact weights what rounding took from them is multiplied as well.
    """
    rounded = weights.to(v.dtype)
    accumulator = tl.dot(rounded, v, accumulator, input_precision="ieee")
    if EXACT_WEIGHTS:
        rest = (weights - rounded.to(tl.float32)).to(v.dtype)
        accumulator = tl.dot(rest, v, accumulator, input_precision="ieee")
    return accumulator
