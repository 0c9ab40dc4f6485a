"""How the kernels read a packed plan: integers of a record."""

from __future__ import annotations

import triton.language as tl

TASK_INTS = tl.constexpr(8)
SLOT_INTS = tl.constexpr(8)
