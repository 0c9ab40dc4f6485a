"""Sizes of the buffers that hold a plan of every batch."""

from __future__ import annotations

import math

from sglang_codec.planning.plan import ALIGNED_ENTRIES, READ_AHEAD, PlanCapacity, PlanSpec

# how often `frugal` may list a token, plus one: the more copies, the fewer parts
FANS = (16, 8, 4, 2)
_SHORT_RUN = 64  # tokens of runs, in the mean of the rows, that are cheaper listed again


def capacity_for(spec: PlanSpec, *, rows: int, pool_slots: int) -> PlanCapacity:
    """Buffers in which `frugal.frugal_plan` finds a plan of every batch.

    That is: of at most `rows` rows, whose forest has at most `pool_slots` tokens, each counted
    once. What a batch holds lies in the pool, so that is every batch whose sharing is known.

    The proof, for the plan that `frugal` falls back to: the paths of `HeavyPaths` in clusters, and
    each row reads, without sharing, one range of tokens in each cluster on its way to the root.
    Every path lists the tokens of its cluster above it and its own. With a fan ``f``, a path
    belongs to the cluster of the path that it leaves if it has more than ``1 / f`` of the readers
    ``s`` at the cluster's root; else it begins a cluster.

    *KV index.* The deepest nodes with more than ``s / f`` readers on each path of a cluster have
    different readers, at most ``s`` together: a cluster has fewer than `f` paths, so no token is
    listed more than ``f - 1`` times. To that each of the ``rows`` paths adds its headroom, at most
    3 entries in front (a range begins where slots can be loaded at once) and 3 behind.

    *Parts.* ``T(s)``, the ranges of all rows below a cluster's root, is `s` and those of the
    clusters below it, of sizes ``s_i <= s / f`` that are `s` at most together: by induction
    ``T(s) <= s + sum s_i (1 + log_f s_i) <= s + s log_f s``. Nor are they more than with a cluster
    for each path, where a node of `s` readers sends all but those of its largest child ``s_1`` to
    one more range: ``s - s_1 <= s H / 2``, `H` being the entropy in bits of which child a row goes
    to, and these entropies add up to that of the row itself: ``T(s) <= s + s / 2 log2 s``.

    *Tasks.* A task has a row at least and leaves it a range, so they are no more than these.

    *The packed plan* has room for what a plan within these sizes consists of, see
    `PlanLayout.size`.

    Args:
        rows: of the table of requests. pool_slots: of the KV pool.

    Raises:
        ValueError: a pool whose slots 32-bit entries cannot list.
    """
    slack = spec.tail_headroom + 2 * ALIGNED_ENTRIES + _SHORT_RUN
    once = pool_slots + rows * slack
    # what the planner that shares everything does well with; it falls back to less
    parts = 4 * rows + 32 * spec.num_slots
    part_bytes = spec.shape.partial_bytes * spec.shape.num_kv_heads
    best: tuple[int, int, int] | None = None
    for fan in FANS:
        kv_index = once + (fan - 2) * pool_slots
        most_parts = max(parts, rows_ranges(rows, fan))
        nbytes = 4 * kv_index + most_parts * part_bytes
        if kv_index < 2**31 - READ_AHEAD and (best is None or nbytes < best[0]):
            best = nbytes, kv_index, most_parts
    if best is None:
        raise ValueError(
            f"a KV pool of {pool_slots} slots and {rows} rows need {once} index entries, and 32 "
            "bits name fewer; give the server a smaller pool (--max-total-tokens)"
        )
    _, kv_index, most_parts = best
    return PlanCapacity(
        rows=rows,
        tasks=most_parts,
        parts=most_parts,
        kv_index=kv_index,
        bundle_index=once,
    )


def rows_ranges(rows: int, fan: int) -> int:
    """Ranges of tokens that all rows together read at most without sharing."""
    return rows + math.ceil(rows * math.log2(max(rows, 1)) / max(2.0, math.log2(fan)))
