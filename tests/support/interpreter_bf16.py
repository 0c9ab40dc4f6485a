"""Makes `tl.dot` right for bf16 in Triton's interpreter (wrong in 3.7.1 and 3.9.0).

The interpreter keeps bf16 as 16-bit integers and multiplies these integers. The repair widens the
operands to fp32, which is exact: a bf16 is the upper half of an fp32.
"""

from __future__ import annotations

from typing import Any

_MARK = "_codec_bf16_repair"


def repair_bf16_dot() -> None:
    """Install the repair in this process; idempotent."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    original = InterpreterBuilder.create_dot
    if hasattr(original, _MARK):
        return

    def widened(operand: TensorHandle) -> TensorHandle:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        bits = operand.data.view(np.uint16).astype(np.uint32)
        return TensorHandle(np.left_shift(bits, 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        return original(self, widened(a), widened(b), *rest)

    setattr(create_dot, _MARK, True)
    InterpreterBuilder.create_dot = create_dot
