"""PAC for any GPU, and the interpreter: every warp of a program does the same."""

from __future__ import annotations

import triton
import triton.language as tl

from sglang_codec.kernels.portable.task import attend
from sglang_codec.kernels.records import SLOT_INTS


@triton.jit
def _pac_kernel(given, VARIANT: tl.constexpr):
    """One program walks the tasks of one slot for one KV head, class by class."""
    slot = tl.program_id(0)
    kv_head = tl.program_id(1)
    if VARIANT.EARLY_LAUNCH:
        tl.extra.cuda.gdc_launch_dependents()
    for index in tl.static_range(len(VARIANT.CLASSES)):
        of_class = given.plan_ptr + slot * SLOT_INTS + 2 * VARIANT.CLASSES[index][0]
        begin = tl.load(of_class)
        end = tl.load(of_class + 1)
        for task in tl.range(begin, end, num_stages=1):
            attend(
                given,
                task,
                kv_head,
                VARIANT,
                VARIANT.CLASSES[index][1],
                VARIANT.CLASSES[index][2],
                VARIANT.CLASSES[index][3],
            )
