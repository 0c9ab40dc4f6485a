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
