"""How the kernels read a packed plan: integers of a record, and where runs of the KV index begin.

The planner packs by the same numbers (`planning/plan.py`), and a test compares them.
"""

from __future__ import annotations

import triton.language as tl

TASK_INTS = tl.constexpr(8)
SLOT_INTS = tl.constexpr(8)
MERGE_INTS = tl.constexpr(4)
PIECE_INTS = tl.constexpr(4)
ALIGNED_ENTRIES = tl.constexpr(4)
# `Plan.append_base` of rows without a tail; with windows that of other rows may be negative
NO_TAIL = tl.constexpr(-1)
NO_TAIL_BEHIND_WINDOW = tl.constexpr(-(1 << 30))
