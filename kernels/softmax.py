"""The softmax, the same in all kernels: caps on scores, a KV step, and what a sink adds."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def capped(scores, given):
    """What `qk_scale` is the factor of: the scores, or where the layer has a cap, their tanh.

    Before any score is masked: a cap would make a small number of -inf.
    """
    if given.tanh_scale is not None:
        scores = 1.0 - 2.0 / (1.0 + tl.exp2(scores * given.tanh_scale))
    return scores


@triton.jit
def softmax_step(scores, highest, running_max, qk_scale, MAY_BE_UNSEEN: tl.constexpr):
    """Weights ``[M, N]``, what all sums so far are to be multiplied with, and the new maximum.

    `highest` are the rows' maxima of these scores. With `MAY_BE_UNSEEN` a query may have seen no
    token yet: its maximum is -inf.
    """
    new_max = tl.maximum(running_max, highest * qk_scale)
    reference = new_max
    if MAY_BE_UNSEEN:
        reference = tl.where(new_max == -float("inf"), 0.0, new_max)
    rescale = tl.exp2(running_max - reference)
    weights = tl.exp2(scores * qk_scale - reference[:, None])
    return weights, rescale, new_max


@triton.jit
def join_sink(lse, sink):
    """What to multiply rows of this LSE with when a sink takes part in the sum; the LSE with it.

    A row without tokens stays one.
    """
    sink = sink.to(tl.float32) * LOG2_E
    is_empty = lse == -float("inf")
    above = sink - tl.where(is_empty, 0.0, lse)
    smaller = tl.exp2(-tl.abs(above))  # of the two, compared with the larger one
    left = tl.where(above > 0.0, smaller, 1.0) / (1.0 + smaller)
    joined = tl.maximum(sink, lse) + tl.log2(1.0 + smaller)
    return left, tl.where(is_empty, lse, joined)
