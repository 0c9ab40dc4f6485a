"""The computing warpgroups: 64 query rows of every large tile, every other step of all else.

Of a task whose steps both take, the one with the last step gets what the other has found, in the
place of the other's last step in the ring, and stores.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from sglang_codec.kernels.hopper.bundle_repair import repair
from sglang_codec.kernels.hopper.hand_over import hand_over, rows_of_values, take_over
from sglang_codec.kernels.hopper.ring import query_buffers, release
from sglang_codec.kernels.hopper.rows import (
    ROWS,
    computing_warpgroups,
    product_layout,
    step_tokens,
)
from sglang_codec.kernels.hopper.steps import Share, places_of, read_steps
from sglang_codec.kernels.hopper.walk import (
    BUNDLE,
    KEPT,
    LARGE,
    batch_rows,
    task_of,
    tile_rows,
    walk_of,
)
from sglang_codec.kernels.hopper.warp_roles import role_barrier
from sglang_codec.kernels.query_rows import token_row
from sglang_codec.kernels.results import scaled, sinks_of, store_partials, store_rows


@gluon.jit
def compute(given, ring, slot, kv_head, WARPGROUP: gl.constexpr, VARIANT: gl.constexpr):
    """The role of one computing warpgroup."""
    STAGES: gl.constexpr = VARIANT.STAGES
    STEP: gl.constexpr = step_tokens(VARIANT.CLASSES)
    BUFFERS: gl.constexpr = query_buffers(VARIANT.KEY_DIM, VARIANT.VALUE_COLUMNS, STAGES)
    WARPGROUPS: gl.constexpr = computing_warpgroups(VARIANT.VALUE_COLUMNS)
    places = places_of(VARIANT)
    if WARPGROUPS == 2:
        states = rows_of_values(ring, VARIANT)

    walk = walk_of(given, slot, VARIANT)
    task = task_of(walk, 0, VARIANT)
    step = 0
    used = 0  # query buffers so far
    shared = 0  # tasks so far of which both have computed a part
    for turn in range(walk.total):
        task1 = task_of(walk, turn + 1, VARIANT)
        is_both = task.kind == LARGE
        is_bundle = task.kind == BUNDLE
        steps = (task.kv_len + STEP - 1) // STEP
        base = 0
        own = (step + WARPGROUP) & (WARPGROUPS - 1)
        stride = WARPGROUPS
        buffer = used % BUFFERS
        phase = (used // BUFFERS) & 1
        used += 1
        if is_both:
            base = WARPGROUP * ROWS
            own = 0
            stride = 1
            if WARPGROUP == 1:
                buffer = used % BUFFERS
                phase = (used // BUFFERS) & 1
            used += 1
        is_shared = (is_both == 0) & (steps > 1) & (WARPGROUPS > 1)
        # the last step is its own; without steps one of the two stores that nothing was found
        is_last = is_both | (((step + steps + 1 + WARPGROUP) & (WARPGROUPS - 1)) == 0)
        if is_last | is_shared:
            row = batch_rows(given, task, base + places.row, VARIANT)
            # before the steps, which hide that it comes from memory
            sink = sinks_of(given, tile_rows(task, base + places.row, kv_head, VARIANT).head)
            share = Share(base, own, stride, buffer, phase)
            result, lse, last = read_steps(
                given, ring, task, share, places, step, steps, is_both, is_bundle, VARIANT
            )
            if is_last:
                if steps > 0:
                    release(ring.empty.index(last), is_both)
                if WARPGROUPS == 2:  # noqa: SIM102  known to the compiler, unlike the other
                    if is_shared:
                        stage = (step + steps - 2) % STAGES
                        result, lse = take_over(ring, states, result, lse, stage, shared, VARIANT)
                rows = tile_rows(task, base + places.row, kv_head, VARIANT)
                is_spoiled = 0
                if is_bundle:
                    # a weight of zero times the NaN or infinity of another row is NaN: once more
                    # then, token by token, so that it stays with the rows that see the token
                    is_spoiled = gl.max(gl.max((result != result).to(gl.int32), 1), 0)
                tile_row = base + places.row
                _store(given, task, row, tile_row, rows, places.dim, result, lse, sink, VARIANT)
                if is_spoiled > 0:
                    role_barrier()
                    repair(given, task, kv_head, lse, VARIANT)
            elif WARPGROUPS == 2:
                hand_over(ring, states, result, lse, last, shared, VARIANT)
        step += steps
        shared += is_shared.to(gl.int32)
        task = task1


@gluon.jit
def _store(given, task, request, tile_row, rows, dim, result, lse, sink, VARIANT: gl.constexpr):
    """Store what was found of a task: `rows` of its tile, of requests `request`."""
    query, head, valid = rows
    result = scaled(result, given)
    lse = gl.convert_layout(lse, gl.SliceLayout(1, product_layout(VARIANT.VALUE_COLUMNS)))
    if task.part < 0:
        row = token_row(request.to(gl.int64), tile_row, VARIANT)
        store_rows(given, row, head, dim, valid, result, lse, sink, VARIANT)
    else:
        part = token_row(task.part + query, tile_row, VARIANT)
        store_partials(given, part, head, dim, valid, result, lse, KEPT, VARIANT)
