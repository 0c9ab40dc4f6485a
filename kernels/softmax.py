"""The softmax of a KV step, the same in either kernel: scores in, weights and the new state out."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def softmax_step(scores, running_max, running_sum, qk_scale, MAY_BE_UNSEEN: tl.constexpr):
    """Weights ``[M, N]``, what the values so far are to be multiplied with, new maximum and sum.

    With `MAY_BE_UNSEEN` a query may have seen no token yet: its maximum is -inf.
    """
    new_max = tl.maximum(running_max, tl.max(scores, 1) * qk_scale)
    reference = new_max
    if MAY_BE_UNSEEN:
        reference = tl.where(new_max == -float("inf"), 0.0, new_max)
    rescale = tl.exp2(running_max - reference)
    weights = tl.exp2(scores * qk_scale - reference[:, None])
    return weights, rescale, new_max, running_sum * rescale + tl.sum(weights, 1)
