"""Rows that are narrower than the columns that hold them, of which there are a power of two."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def of_width(is_row, column, WIDTH: tl.constexpr):
    """A mask: rows that are there, and of them columns below `WIDTH`; shapes are broadcast."""
    mask = is_row
    if column.numel > WIDTH:
        mask = is_row & (column < WIDTH)
    return mask
