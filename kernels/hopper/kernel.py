"""PAC for Hopper: warps that only load, and two warpgroups that only compute.

The loading warps walk the tasks of a slot ahead of the computing ones, across the ends of tasks, so
that memory never waits for a softmax, a store or the start of the next task. The KV steps pass
through one ring of shared memory. The two computing warpgroups take the steps in turn; where a task
has more query rows than one of them holds, both take all of its steps, each for its own rows.
"""

from __future__ import annotations

from triton import language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from sglang_codec.kernels.hopper.byte_loader import load_bytes
from sglang_codec.kernels.hopper.compute import compute
from sglang_codec.kernels.hopper.loader import load
from sglang_codec.kernels.hopper.ring import make_ring
from sglang_codec.kernels.hopper.rows import computing_warpgroups
from sglang_codec.kernels.hopper.warp_roles import specialize


@gluon.jit
def _load(given, ring, slot, kv_head, VARIANT: gl.constexpr):
    """The role of the loading warps."""
    if VARIANT.EXPONENT:
        load_bytes(given, ring, slot, kv_head, VARIANT)
    else:
        load(given, ring, slot, kv_head, VARIANT)


@gluon.jit
def _pac_hopper_kernel(given, VARIANT: gl.constexpr):
    """One program walks the tasks of one slot for one KV head."""
    slot = gl.program_id(0)
    kv_head = gl.program_id(1)
    ring = make_ring(given.q_ptr.dtype.element_ty, VARIANT)
    if VARIANT.EARLY_LAUNCH:
        # everything is read after this, by the other roles too
        tl.extra.cuda.gdc_wait()
    if computing_warpgroups(VARIANT.VALUE_COLUMNS) == 1:
        specialize(
            [
                (_load, (given, ring, slot, kv_head, VARIANT)),
                (compute, (given, ring, slot, kv_head, 0, VARIANT)),
            ],
            [4],
        )
    else:
        specialize(
            [
                (_load, (given, ring, slot, kv_head, VARIANT)),
                (compute, (given, ring, slot, kv_head, 0, VARIANT)),
                (compute, (given, ring, slot, kv_head, 1, VARIANT)),
            ],
            [4, 4],
        )
