"""A request with several query rows is one query of a tile, with as many times the heads.

Its rows there are query row after query row, each with the heads of the group. In the tensors of
tokens (Q, the output, LSE) and in the partials its query rows lie one after another too.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def head_of(tile_row, kv_head, VARIANT: tl.constexpr):
    """The query head of rows of a tile."""
    HEADS: tl.constexpr = VARIANT.GROUP // VARIANT.QUERY_ROWS
    return kv_head * HEADS + tile_row % HEADS


@triton.jit
def query_row_of(tile_row, VARIANT: tl.constexpr):
    """Which query row of its request each row of a tile is; the last is the newest token."""
    return tile_row % VARIANT.GROUP // (VARIANT.GROUP // VARIANT.QUERY_ROWS)


@triton.jit
def token_row(request, tile_row, VARIANT: tl.constexpr):
    """Rows of a tensor that has `QUERY_ROWS` of them where `request` counts one."""
    if VARIANT.QUERY_ROWS > 1:
        request = request * VARIANT.QUERY_ROWS + query_row_of(tile_row, VARIANT)
    return request


@triton.jit
def reader_of(tile_row, VARIANT: tl.constexpr):
    """Which reader of a bundle each row of its tile is: the query rows of all its requests."""
    return tile_row // (VARIANT.GROUP // VARIANT.QUERY_ROWS)


@triton.jit
def seen_end(tokens, tile_row, kv_len, VARIANT: tl.constexpr):
    """Tokens of a chunk that rows of a tile see, where the request has `tokens` from its begin."""
    newer = VARIANT.QUERY_ROWS - 1 - query_row_of(tile_row, VARIANT)
    return tl.minimum(tokens - newer, kv_len)
