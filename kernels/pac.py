"""PAC, prefix attention computation: one KV chunk, once, for every query row that shares it.

One launch, described here, and two kernels that take it: `portable`, and `hopper` with warp roles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from sglang_codec.attention_shape import columns_for
from sglang_codec.kernels.again import addresses
from sglang_codec.kernels.fp8 import exponent_bits
from sglang_codec.kernels.given import are_sinks, is_lse, refuse
from sglang_codec.kernels.launch import LaunchConfig
from sglang_codec.kernels.portable.kernel import _pac_kernel
from sglang_codec.kernels.softmax import LOG2_E

_COPIED_BYTES = 16  # at once, with warp roles: where rows of Q, K and V then have to begin


class PacArguments(NamedTuple):
    """What a launch passes: tensors, which a kernel sees as pointers, and numbers."""

    q_ptr: torch.Tensor  # [B * n, Hq, Dk], the n query rows of a request one after another
    k_ptr: torch.Tensor  # [num_slots, Hkv, Dk], bytes where they are fp8
    v_ptr: torch.Tensor  # [num_slots, Hkv, Dv], likewise
    out_ptr: torch.Tensor  # [B * n, Hq, Dv]
    lse_ptr: torch.Tensor  # [B * n, Hq] fp32, base 2
    partial_out_ptr: torch.Tensor  # [parts, n * Hq, Dv] fp32
    partial_lse_ptr: torch.Tensor  # [parts, n * Hq] fp32, base 2
    sinks_ptr: torch.Tensor | None  # [Hq]
    plan_ptr: torch.Tensor  # packed plan, int32
    kv_index_ptr: torch.Tensor  # [entries] int32
    bundle_index_ptr: torch.Tensor  # [entries] int32
    bundle_readers_ptr: torch.Tensor  # [entries] int32: query rows of the bundle
    row_lengths_ptr: torch.Tensor | None  # [B] int32, for windows or several query rows
    order_offset: int
    tasks_offset: int
    qk_scale: float  # of the scores or their tanh, for a softmax in base 2
    tanh_scale: float | None  # of the scores whose tanh is taken, in base 2; None without a cap
    v_scale: float | None  # of what PAC finds; None for 1
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
    """What a kernel is compiled for, in plain numbers.

    A constexpr function is passed fields of it: of the whole, Triton 3.6 loses their names.
    """

    GROUP: int  # rows of a request in a tile: query rows times query heads per KV head
    QUERY_ROWS: int  # of a request
    KEY_DIM: int  # elements of a row of Q or K
    VALUE_DIM: int  # of V, of the output or a partial
    KEY_COLUMNS: int  # which hold them: a power of two
    VALUE_COLUMNS: int
    EXPONENT: int  # bits of it where K and V are fp8; 0 where their dtype is that of the queries
    EXACT_WEIGHTS: bool  # what rounding takes from the softmax weights is multiplied too
    WRITE_LSE: bool
    CLASSES: tuple[tuple[int, int, int, bool], ...]  # LaunchConfig.execution_order
    STAGES: int  # KV steps in shared memory, or on their way there
    AHEAD: int  # of fp8 and with warp roles, steps on their way to where they become STAGES
    EARLY_LAUNCH: bool
    WINDOW: int  # newest tokens that a row sees; 0 for all


def pac(
    q: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    partial_out: torch.Tensor,
    partial_lse: torch.Tensor,
    plan: torch.Tensor,
    kv_index: torch.Tensor,
    bundle_index: torch.Tensor,
    bundle_readers: torch.Tensor,
    *,
    order_offset: int,
    tasks_offset: int,
    num_slots: int,
    sm_scale: float,
    config: LaunchConfig,
    sinks: torch.Tensor | None = None,
    soft_cap: float | None = None,
    row_lengths: torch.Tensor | None = None,
    window: int = 0,
    query_rows: int = 1,
    v_scale: float | None = None,
) -> Callable[[torch.Tensor, torch.Tensor], None] | None:
    """Run every task of a packed plan, with the lengths that `follow_lengths` wrote into it.

    Args:
        q, out: ``[B * n, Hq, Dk]`` and ``[B * n, Hq, Dv]`` with `n` query rows of each request one
            after another, at least as many requests as the plan has.
            k_buffer, v_buffer: ``[num_slots, Hkv, Dk]`` and ``[num_slots, Hkv, Dv]``, in the dtype
            of q or in fp8 (e4m3fn, e5m2). The last dimension of each is contiguous; nothing outside
            of these rows is read.
        lse: ``[B * n, Hq]`` fp32 contiguous, base 2, or None.
        partial_out: ``[parts, n * Hq, Dv]`` fp32 contiguous; partial_lse: ``[parts, n * Hq]``.
        plan: packed plan (`PlanLayout`), int32; the offsets say where its sections begin.
        kv_index: int32 KV slots. bundle_index: int32 KV slots of the bundles, bundle_readers: the
            queries ``[low, high)`` that see each, as ``low + 65536 * high``. With warp roles tasks
            begin at multiples of four entries, and 128 entries behind the last may be read
            (`planning/plan.py`: `ALIGNED_ENTRIES`, `READ_AHEAD`).
        sm_scale: factor of the scores before the softmax, greater than 0.
        sinks: ``[Hq]`` contiguous, a logit per head that joins the sum of rows with one part.
        soft_cap: scaled scores are bent into (-soft_cap, soft_cap) by tanh; None for no cap.
        row_lengths: int32 ``[B]``, needed for a window or several query rows. window: newest tokens
            that a row sees, 0 for all; a plan of such rows, with what `follow_lengths` made of it
            for this window.
        query_rows: `n`, newest tokens of a request that attend, each to all up to itself.
        v_scale: factor of the values, of partials too; None for 1.

    Rows with one part are written to `out` (and `lse`); the others leave partials for `por`.

    Returns:
        The same launch for other `q` and `out` that are `alike`, without `lse`; None where nothing
        is compiled.

    Raises:
        ValueError: shapes, dtypes or strides that do not match.
    """
    shape, (_, *k_row), (_, *v_row) = q.shape, k_buffer.shape, v_buffer.shape
    _, *partial_row = partial_out.shape
    strides = (*q.stride(), *k_buffer.stride(), *v_buffer.stride(), *out.stride())
    exponent = exponent_bits(k_buffer.dtype, q.dtype)
    has_ends = window > 0 or query_rows > 1  # of what a row sees, which its length says
    if not (
        len(shape) == len(k_row) + 1 == len(v_row) + 1 == 3
        and strides[2::3] == (1, 1, 1, 1)
        and out.shape == (*shape[:2], v_row[1])
        and partial_row == [query_rows * shape[1], v_row[1]]
        and shape[0] % query_rows == 0
        and k_row == [v_row[0], shape[2]]
        and shape[1] % k_row[0] == 0
        and q.dtype == out.dtype
        and k_buffer.dtype == v_buffer.dtype
        and exponent is not None
        and is_lse(lse, shape[:2])
        and are_sinks(sinks, shape[1])
        and (not has_ends or (row_lengths is not None and row_lengths.dtype == torch.int32))
        and not (config.warp_roles and _begin_anywhere(q, k_buffer, v_buffer, strides))
        and not (config.warp_roles and _do_not_fit(shape[2], v_row[1], config))
        and not (config.warp_roles and exponent and _no_bytes(shape[2], v_row[1], config))
    ):
        refuse(
            "pac",
            "q [rows, Hq, Dk], out [rows, Hq, Dv], k_buffer [num_slots, Hkv, Dk] and v_buffer "
            "[num_slots, Hkv, Dv], of one dtype or K and V in fp8, the last dimension contiguous "
            f"(on Hopper rows that begin at multiples of {_COPIED_BYTES} bytes, Dk and Dv up to "
            "64, 128 or 256 or 192 and 128, no tiles of 128 rows for Dv above 128, no steps of "
            "128 tokens for Dv above 64 or fp8, and of fp8 Dk as Dv and steps ahead), lse [rows, "
            "Hq] fp32 contiguous, sinks [Hq] contiguous floats, with a window or several query "
            "rows the rows' lengths, int32, and partial_out [parts, "
            f"{query_rows} query rows x Hq, Dv], as rows of q belong to a request",
            q=q,
            k_buffer=k_buffer,
            v_buffer=v_buffer,
            out=out,
            lse=lse,
            sinks=sinks,
            partial_out=partial_out,
            row_lengths=row_lengths,
        )
    _, num_qo_heads, key_dim = shape
    value_dim = v_row[1]
    num_kv_heads = k_row[0]
    group = query_rows * num_qo_heads // num_kv_heads
    # with fp8 V is fp16 there, and the weights are with it: bf16 output rounds more than they do
    is_fine = q.dtype == torch.bfloat16 and exponent > 0 and config.warp_roles
    if exponent:
        # not every GPU has these dtypes
        k_buffer, v_buffer = k_buffer.view(torch.uint8), v_buffer.view(torch.uint8)
    arguments = PacArguments(
        q,
        k_buffer,
        v_buffer,
        out,
        lse if lse is not None else partial_lse,
        partial_out,
        partial_lse,
        sinks,
        plan,
        kv_index,
        bundle_index,
        bundle_readers,
        row_lengths if has_ends else None,
        order_offset,
        tasks_offset,
        LOG2_E.value * (soft_cap or sm_scale),
        2 * LOG2_E.value * sm_scale / soft_cap if soft_cap else None,
        v_scale,
        *strides[0:2],
        *strides[3:5],
        *strides[6:8],
        *strides[9:11],
        num_qo_heads,
    )
    variant = PacVariant(
        GROUP=group,
        QUERY_ROWS=query_rows,
        KEY_DIM=key_dim,
        VALUE_DIM=value_dim,
        KEY_COLUMNS=columns_for(key_dim),
        VALUE_COLUMNS=columns_for(value_dim),
        EXPONENT=exponent,
        EXACT_WEIGHTS=config.weights_are_exact(group) and not (is_fine or q.dtype == torch.float32),
        WRITE_LSE=lse is not None,
        CLASSES=config.execution_order,
        STAGES=config.stages,
        AHEAD=config.ahead,
        EARLY_LAUNCH=config.early_launch,
        WINDOW=window,
    )
    kernel, options = _pac_kernel, {"num_stages": config.stages}
    if config.warp_roles:
        # compiled for one architecture, by a part of Triton that the interpreter does not have
        from sglang_codec.kernels.hopper.kernel import _pac_hopper_kernel as kernel

        options = {"launch_pdl": True} if config.early_launch else {}
    grid = (num_slots, num_kv_heads, 1)
    compiled = kernel[grid](arguments, variant, num_warps=config.num_warps, **options)
    if compiled is None or lse is not None:
        return None
    given, launch = addresses(arguments), compiled[grid]

    def again(q: torch.Tensor, out: torch.Tensor) -> None:
        launch(given._replace(q_ptr=q.data_ptr(), out_ptr=out.data_ptr()), variant)

    return again


def _do_not_fit(key_dim: int, value_dim: int, config: LaunchConfig) -> bool:
    """Whether `hopper` has no place for rows of these widths, or not with these tiles."""
    columns = columns_for(value_dim)
    has_place = columns_for(key_dim) == columns >= 64 or (key_dim, columns) == (192, 128)
    is_long = columns > 64 and config.block_kv > 64
    return not has_place or is_long or (columns > 128 and 128 in config.row_tiles)


def _no_bytes(key_dim: int, value_dim: int, config: LaunchConfig) -> bool:
    """Whether the warps that load fp8 cannot: other widths, no steps ahead, long ones."""
    has_place = config.ahead > 0 and config.block_kv == 64
    return not (has_place and key_dim == value_dim == columns_for(value_dim))


def _begin_anywhere(
    q: torch.Tensor, k_buffer: torch.Tensor, v_buffer: torch.Tensor, strides: tuple[int, ...]
) -> bool:
    """Whether a row of Q, K or V may begin where it cannot be copied from."""
    begin = q.data_ptr() | k_buffer.data_ptr() | v_buffer.data_ptr()
    begin |= (strides[0] | strides[1]) * q.itemsize
    begin |= (strides[3] | strides[4] | strides[6] | strides[7]) * k_buffer.itemsize
    return bool(begin % _COPIED_BYTES)
