"""The KV steps of a task, as one computing warpgroup takes them: S = Q K', softmax, O += P V."""

from __future__ import annotations

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from sglang_codec.kernels.hopper.ring import place_of, release
from sglang_codec.kernels.hopper.row_totals import highest_of, no_sum, sum_at_last, summed
from sglang_codec.kernels.hopper.rows import (
    ROWS,
    computing_warpgroups,
    copied_columns,
    held_by,
    pool_width,
    product_layout,
    rest_columns,
    step_tokens,
)
from sglang_codec.kernels.hopper.walk import batch_rows
from sglang_codec.kernels.query_rows import reader_of, seen_end
from sglang_codec.kernels.softmax import capped, softmax_step


@gluon.constexpr_function
def tokens_at_once(classes, exact_weights):
    """Of a step: the second product of exact weights needs registers, and takes a part of it."""
    return 32 if exact_weights else step_tokens(classes)


class Places(NamedTuple):
    """What the registers of a thread hold of the two products."""

    scores_row: Any  # query rows of S
    column: Any  # tokens of S
    row: Any  # query rows of O
    dim: Any  # columns of O
    no_scores: Any  # where each S begins


class Share(NamedTuple):
    """The steps of a task that one warpgroup takes."""

    base: Any  # first query row in the tile
    own: Any  # first step
    stride: Any  # from one step to the next
    buffer: Any  # of the queries
    phase: Any  # of that buffer


@gluon.jit
def places_of(VARIANT: gl.constexpr):
    """The places, the same for every task."""
    COLUMNS: gl.constexpr = VARIANT.VALUE_COLUMNS
    COPIED: gl.constexpr = copied_columns(VARIANT.KEY_DIM, COLUMNS)
    TOKENS: gl.constexpr = tokens_at_once(VARIANT.CLASSES, VARIANT.EXACT_WEIGHTS)
    of_scores: gl.constexpr = product_layout(TOKENS)
    of_values: gl.constexpr = product_layout(COLUMNS)
    scores_row = held_by(gl.arange(0, ROWS, gl.SliceLayout(1, of_scores)), COPIED, ROWS)
    column = gl.arange(0, TOKENS, gl.SliceLayout(0, of_scores))
    row = held_by(gl.arange(0, ROWS, gl.SliceLayout(1, of_values)), COPIED, ROWS)
    dim = gl.arange(0, COLUMNS, gl.SliceLayout(0, of_values))
    no_scores = gl.zeros([ROWS, TOKENS], gl.float32, of_scores)
    return Places(scores_row, column, row, dim, no_scores)


@gluon.jit
def read_steps(
    given, ring, task, share, places, step, steps, is_both, is_bundle, VARIANT: gl.constexpr
):
    """Output ``[64, D]`` and LSE ``[64]`` from a share's steps, and the barrier of the last V.

    That V is not let go of; the queries are. `step` is the first of the task, of `steps`.
    """
    COLUMNS: gl.constexpr = VARIANT.VALUE_COLUMNS
    COPIED: gl.constexpr = copied_columns(VARIANT.KEY_DIM, COLUMNS)
    HAS_REST: gl.constexpr = rest_columns(VARIANT.KEY_DIM, COLUMNS) > 0
    STAGES: gl.constexpr = VARIANT.STAGES
    STEP: gl.constexpr = step_tokens(VARIANT.CLASSES)
    TOKENS: gl.constexpr = tokens_at_once(VARIANT.CLASSES, VARIANT.EXACT_WEIGHTS)
    ALONE: gl.constexpr = computing_warpgroups(COLUMNS) == 1
    of_values: gl.constexpr = product_layout(COLUMNS)
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, of_values, 2)
    of_scores: gl.constexpr = product_layout(TOKENS)
    rows: gl.constexpr = gl.SliceLayout(1, of_scores)
    values_rows: gl.constexpr = gl.SliceLayout(1, of_values)
    WIDTH: gl.constexpr = pool_width(COPIED, VARIANT.EXPONENT)
    dtype: gl.constexpr = ring.as_v.dtype
    query = (share.base + places.scores_row) // VARIANT.GROUP
    reader = reader_of(share.base + places.scores_row, VARIANT)
    edge = query
    masked = 0
    if VARIANT.WINDOW:
        # the first token that each row sees, counted as the steps count; behind all: no masks
        row = batch_rows(given, task, share.base + places.scores_row, VARIANT)
        edge = gl.load(given.row_lengths_ptr + row) - VARIANT.WINDOW - task.window[1]
        edge = gl.where(query < task.queries, edge, 0)
        masked = gl.where(is_bundle, 0, gl.max(edge, 0))
    # the first token that not every row sees
    border = task.kv_len
    seen_to = query
    if VARIANT.QUERY_ROWS > 1:
        owner, begin = task.tail
        tokens = gl.load(given.row_lengths_ptr + owner, mask=owner >= 0, other=2147483647) - begin
        border = gl.minimum(tokens - (VARIANT.QUERY_ROWS - 1), border)
        tile_row = share.base + places.scores_row
        seen_to = seen_end(tokens, tile_row, task.kv_len, VARIANT)
    running_max = gl.full([ROWS], -float("inf"), gl.float32, rows)
    running_sum = no_sum(places.no_scores)
    accumulator = warpgroup_mma_init(gl.zeros([ROWS, COLUMNS], gl.float32, of_values))
    mbarrier.wait(ring.q_full.index(share.buffer), share.phase)
    q = ring.q.index(share.buffer)
    _, last, _ = place_of(step + share.own, 1, VARIANT)  # barrier of V of the step before
    for nth in range(share.own, steps, share.stride):
        my_step = step + nth
        k_place, of_k, k_uses = place_of(my_step, 0, VARIANT)
        v_place, of_v, v_uses = place_of(my_step, 1, VARIANT)
        mbarrier.wait(ring.k_full.index(of_k), k_uses)
        fence_async_shared()
        for half in gl.static_range(STEP // TOKENS):
            k = ring.kv.index(k_place).slice(half * TOKENS, TOKENS)
            pending = warpgroup_mma(
                q, k.permute((1, 0)), places.no_scores, use_acc=False, is_async=True
            )
            if HAS_REST:
                k = ring.rest[1].index(my_step % STAGES).slice(half * TOKENS, TOKENS)
                pending = warpgroup_mma(
                    ring.rest[0].index(share.buffer), k.permute((1, 0)), pending, is_async=True
                )
            scores, values = warpgroup_mma_wait(0, deps=(pending, accumulator))
            scores = capped(scores, given)
            if half == 0:
                if nth > share.own:
                    release(ring.empty.index(last), is_both)
                last = of_v
            if ALONE and half == STEP // TOKENS - 1:
                release(ring.empty.index(of_k), False)
            if is_bundle:
                readers = ring.readers.index(my_step % STAGES).slice(half * TOKENS, TOKENS)
                readers = readers.load(gl.SliceLayout(0, of_scores))
                seen = (reader[:, None] >= (readers & 0xFFFF)[None, :]) & (
                    reader[:, None] < (readers >> 16)[None, :]
                )
                scores = gl.where(seen, scores, -float("inf"))
            elif nth * STEP + STEP > border:
                token = nth * STEP + held_by(half * TOKENS + places.column, WIDTH, STEP)
                within = (token < task.kv_len)[None, :]
                if VARIANT.QUERY_ROWS > 1:
                    within = token[None, :] < seen_to[:, None]
                scores = gl.where(within, scores, -float("inf"))
            if VARIANT.WINDOW:  # noqa: SIM102  known to the compiler, unlike the other
                if nth * STEP < masked:
                    token = nth * STEP + held_by(half * TOKENS + places.column, WIDTH, STEP)
                    seen = token[None, :] >= edge[:, None]
                    scores = gl.where(seen, scores, -float("inf"))
            weights, rescale, running_max = softmax_step(
                scores, highest_of(scores), running_max, given.qk_scale, True
            )
            running_sum = summed(running_sum, rescale, weights)
            values = values * gl.convert_layout(rescale, values_rows)[:, None]
            rounded = weights.to(dtype)
            if half == 0:
                mbarrier.wait(ring.v_full.index(of_v), v_uses)
                fence_async_shared()
            v = ring.as_v.index(v_place).slice(half * TOKENS, TOKENS)
            accumulator = warpgroup_mma(
                gl.convert_layout(rounded, weights_layout), v, values, is_async=True
            )
            if VARIANT.EXACT_WEIGHTS:
                rest = (weights - rounded.to(gl.float32)).to(dtype)
                accumulator = warpgroup_mma(
                    gl.convert_layout(rest, weights_layout), v, accumulator, is_async=True
                )
            if TOKENS > ROWS:
                # their weights would take the registers of the next scores
                accumulator = warpgroup_mma_init(warpgroup_mma_wait(0, deps=(accumulator,)))
    values = warpgroup_mma_wait(0, deps=(accumulator,))
    if is_both | (steps < 2) | ALONE:
        mbarrier.arrive(ring.q_empty.index(share.buffer), count=2)
    else:
        mbarrier.arrive(ring.q_empty.index(share.buffer), count=1)

    running_sum = sum_at_last(running_sum, places.no_scores)
    # an open chunk may still be empty: weight zero, LSE -inf
    is_empty = running_sum == 0.0
    inverse = 1.0 / gl.where(is_empty, 1.0, running_sum)
    lse = gl.where(is_empty, -float("inf"), running_max + gl.log2(running_sum))
    result = values * gl.convert_layout(inverse, values_rows)[:, None]
    if VARIANT.WINDOW:
        # not what zero times a NaN is of tokens that others see
        is_unseen = gl.convert_layout(is_empty, values_rows)[:, None]
        result = gl.where(is_unseen, 0.0, result)
    return result, lse, last
