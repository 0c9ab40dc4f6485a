"""What PAC's kernels are given, whichever of them runs: a new argument is written here, once."""

from __future__ import annotations

from typing import NamedTuple

import torch


class PacArguments(NamedTuple):
    """What a launch passes: tensors, which a kernel sees as pointers, and numbers."""

    q_ptr: torch.Tensor  # [B, Hq, D]
    k_ptr: torch.Tensor  # [num_slots, Hkv, D]
    v_ptr: torch.Tensor  # [num_slots, Hkv, D]
    out_ptr: torch.Tensor  # [B, Hq, D]
    lse_ptr: torch.Tensor  # [B, Hq] fp32, base 2
    partial_out_ptr: torch.Tensor  # [parts, Hq, D] fp32
    partial_lse_ptr: torch.Tensor  # [parts, Hq] fp32, base 2
    plan_ptr: torch.Tensor  # packed plan, int32
    kv_index_ptr: torch.Tensor  # [entries] int32
    bundle_index_ptr: torch.Tensor  # [entries] int32
    bundle_readers_ptr: torch.Tensor  # [entries] int32
    order_offset: int
    tasks_offset: int
    qk_scale: float  # of the scores, for a softmax in base 2
    q_row_stride: int
    q_head_stride: int
    k_slot_stride: int
    k_head_stride: int
    v_slot_stride: int
    v_head_stride: int
    out_row_stride: int
    out_head_stride: int
    num_qo_heads: int


class PacVariant(NamedTuple):
    """What a kernel is compiled for."""

    GROUP: int  # query heads per KV head
    HEAD_DIM: int
    EXACT_WEIGHTS: bool  # what rounding takes from the softmax weights is multiplied too
    WRITE_LSE: bool
    CLASSES: tuple[tuple[int, int, int, bool], ...]  # LaunchConfig.execution_order
    STAGES: int  # KV steps in shared memory, or on their way there
    EARLY_LAUNCH: bool
