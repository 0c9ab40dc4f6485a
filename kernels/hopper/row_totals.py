"""Maxima and sums of the rows of a step's scores.

Of a step of 128 tokens each of the four threads that hold a row keeps a sum of its own until the
task ends, and looks for the maximum in two chains, not one. Steps of 64 tokens lose with that.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from sglang_codec.kernels.hopper.rows import ROWS


@gluon.jit
def highest_of(scores):
    """Maxima of rows; of long rows in several chains at a time."""
    if scores.shape[1] > ROWS:
        highest = gl.max(gl.max(_by_thread(scores), 1), 2)
        return gl.convert_layout(gl.max(highest, 1), _rows_of(scores), assert_trivial=True)
    else:
        return gl.max(scores, 1)


@gluon.jit
def summed(running_sum, rescale, weights):
    """The sum of a row's weights so far; of long rows what each of four threads has of it."""
    if weights.shape[1] > ROWS:
        own = gl.sum(gl.sum(_by_thread(weights), 1), 2)
        rescale = gl.convert_layout(rescale, gl.SliceLayout(1, own.type.layout))
        return running_sum * rescale[:, None] + own
    else:
        return running_sum * rescale + gl.sum(weights, 1)


@gluon.jit
def no_sum(no_scores):
    """What the sum is before the first step."""
    if no_scores.shape[1] > ROWS:
        return gl.sum(gl.sum(_by_thread(no_scores), 1), 2)
    else:
        return gl.zeros([ROWS], gl.float32, _rows_of(no_scores))


@gluon.jit
def sum_at_last(running_sum, no_scores):
    """The sums of rows when all weights are in."""
    if no_scores.shape[1] > ROWS:
        return gl.convert_layout(gl.sum(running_sum, 1), _rows_of(no_scores), assert_trivial=True)
    else:
        return running_sum


@gluon.jit
def _by_thread(scores):
    """``[64, tokens]`` as ``[64, tokens / 8, 4, 2]``: four threads hold a row, pair by pair."""
    return scores.reshape([ROWS, scores.shape[1] // 8, 4, 2])


@gluon.constexpr_function
def _rows_of(scores):
    return gl.SliceLayout(1, scores.type.layout)
