"""Some plan always fits: the proven capacities hold a last resort for every tree of prompts."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_checker import check_packed, check_plan
from plan_specs import SHAPE, SPECS, UNLIMITED, cost_model
from random_batches import TREES
from random_paths import ROW, paths_of
from token_rows import TokenRows

from sglang_codec.attention_shape import AttentionShape
from sglang_codec.device import Device, plan_spec
from sglang_codec.kernels.launch import INTERPRETED, INTERPRETED_SMS, launch_config
from sglang_codec.planning.capacity import FANS, capacity_for, rows_ranges
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.frugal import frugal_plan
from sglang_codec.planning.packed import pack
from sglang_codec.planning.paths import RadixPaths
from sglang_codec.planning.plan import PlanCapacity, PlanCapacityError, PlanLayout, PlanSpec
from sglang_codec.testing import (
    Counts,
    lengths_of,
    radix_paths_of,
    rows_of,
    tree_counts,
    with_slots,
)

HEADROOM = 128
H100 = Device("H100", launch_config((9, 0), SHAPE), 132, 3.35e12, 9e14, 50 * 2**20)
INTERPRETER = Device("interpreter", INTERPRETED, INTERPRETED_SMS, 1e10, 1e11, 0.0)
# (machine, query heads, KV heads, head dimension)
SHAPES = {
    "Llama 8B": (H100, 32, 8, 128),
    "no groups": (H100, 32, 32, 64),
    "groups of 8": (H100, 64, 8, 128),
    "two heads": (H100, 8, 2, 64),
    "interpreter": (INTERPRETER, 4, 2, 64),
}


def spec_of(shape: str) -> PlanSpec:
    machine, *heads = SHAPES[shape]
    return plan_spec(machine, AttentionShape.plain(*heads), tail_headroom=HEADROOM)


@dataclass(frozen=True)
class Batch:
    """A forest, and the tokens that its rows hold."""

    forest: PrefixForest
    tokens: TokenRows

    @classmethod
    def of(cls, paths: RadixPaths, lengths: np.ndarray) -> Batch:
        forest = PrefixForest.from_radix_paths(paths, lengths, private_tokens=1)
        return cls(forest, TokenRows.of_paths(paths, lengths, 1))


def batch_of(parent: np.ndarray, rows: int, rng: np.random.Generator) -> Batch:
    """`rows` rows over a tree: one ends at each node while there are nodes, the rest anywhere."""
    end = np.zeros(len(parent) + 1, np.int64)
    for node, above in enumerate(parent.tolist()):
        end[node] = end[above if above >= 0 else -1] + rng.integers(1, 30)
    leaf = np.append(np.arange(len(parent)), rng.integers(0, len(parent), rows))[:rows]
    lengths = end[leaf] + rng.integers(1, 40, rows)
    return Batch.of(
        RadixPaths(*(np.asarray(a, np.int32) for a in (parent, end[:-1], leaf))), lengths
    )


def plan_and_pack(batch: Batch, spec: PlanSpec, capacity: PlanCapacity) -> int:
    """The tokens that the last resort reads; it is packed into buffers this large, and checked."""
    plan = frugal_plan(batch.forest, spec, cost_model(spec), capacity)
    layout = PlanLayout.of(capacity, spec)
    out = np.empty(layout.size, np.int32)
    check_packed(out, layout, pack(batch.forest, plan, layout, out), batch.tokens, spec)
    return plan.kv_tokens_read


@pytest.mark.parametrize("tree", ["chain", "binary", "lopsided", "random", "equal prompts"])
@pytest.mark.parametrize(
    ("running", "shape"),
    [(32, "interpreter"), (32, "Llama 8B"), (256, "no groups"), (256, "two heads")]
    + [(2048, "groups of 8")],
)
def test_every_tree_fits_the_buffers_of_the_backend(running: int, shape: str, tree: str) -> None:
    """Also where the batch fills the pool and the table of requests, which has a row more."""
    spec = spec_of(shape)
    rng = np.random.default_rng(running)
    batch = batch_of(TREES[tree](running, rng), running + 1, rng)
    pool_slots = batch.forest.unique_tokens
    capacity = capacity_for(spec, rows=running + 1, pool_slots=pool_slots)
    assert plan_and_pack(batch, spec, capacity) <= batch.forest.total_tokens


# runs whose copies do not hide in the room for heads and tails
LONG = st.tuples(st.integers(0, 99), st.sampled_from((1, 5, 300)))


@given(st.lists(LONG, max_size=24), st.lists(ROW, min_size=1, max_size=24), SPECS, st.booleans())
@settings(max_examples=60)
def test_the_proven_sizes_are_enough_for_every_tree(
    nodes: list[tuple[int, int]], rows: list[tuple[int, int]], spec: PlanSpec, is_deep: bool
) -> None:
    """Not only those that are allocated, which are larger for small batches."""
    if is_deep:
        nodes = [(node, tokens) for node, (_, tokens) in enumerate(nodes)]
    batch = Batch.of(*paths_of(nodes, rows))
    for fan in FANS:
        most = rows_ranges(len(rows), fan)
        entries = (fan - 1) * batch.forest.unique_tokens + len(rows) * (spec.tail_headroom + 6)
        plan_and_pack(batch, spec, PlanCapacity(len(rows), most, most, entries, 0))


PAIR = st.tuples(st.integers(0, 99), st.sampled_from((0, 0, 1, 3, 17, 64, 200, 600)))
COUNTS = st.builds(tree_counts, st.lists(PAIR, max_size=8), st.lists(PAIR, max_size=12))


@given(COUNTS, SPECS, st.floats(1.0, 2.0))
def test_every_token_is_read_once_while_rows_grow(
    counts: Counts, spec: PlanSpec, room: float
) -> None:
    """From the slots of the batch, roots and empty rows included."""
    paths = with_slots(counts, seed=2)
    forest = PrefixForest.from_paths(paths)
    parts = int(rows_ranges(forest.batch, 2) * room)
    capacity = dataclasses.replace(UNLIMITED, tasks=parts, parts=parts)
    plan = frugal_plan(forest, spec, cost_model(spec), capacity)
    assert max(plan.num_tasks, plan.num_parts) <= parts
    check_plan(plan, TokenRows.of_slots(rows_of(paths)), spec, forest)


def growing(batch: int, step: int) -> Batch:
    """A conversation of which each prompt has `step` tokens more."""
    counts = [
        [*((f"turn {t}", step) for t in range(row + 1)), (f"own {row}", 20)] for row in range(batch)
    ]
    return Batch.of(radix_paths_of(counts), lengths_of(counts))


@pytest.mark.parametrize(("batch", "rows", "saves"), [(200, 257, 8), (32, 33, 14)])
def test_the_last_resort_shares_what_the_buffers_allow(batch: int, rows: int, saves: int) -> None:
    spec = spec_of("Llama 8B")
    given = growing(batch, 500)
    capacity = capacity_for(spec, rows=rows, pool_slots=110_000)
    assert plan_and_pack(given, spec, capacity) < given.forest.total_tokens / saves


def test_more_parts_share_more() -> None:
    spec = spec_of("Llama 8B")
    given = growing(100, 200)
    read = [
        plan_and_pack(given, spec, PlanCapacity(100, parts, parts, 1 << 16))
        for parts in (200, 400, 800, 1 << 16)
    ]
    assert read[0] > 4 * read[1] > 8 * read[2] > 12 * read[3]
    assert read[3] < 2.5 * given.forest.unique_tokens  # up to four tiles of 32 rows


def test_equal_prompts_are_read_once_per_tile() -> None:
    spec = spec_of("Llama 8B")
    leaf, rows = np.zeros(2000, np.int32), 2049
    paths = RadixPaths(np.array([-1], np.int32), np.array([900], np.int32), leaf)
    batch = Batch.of(paths, leaf + 910)
    capacity = capacity_for(spec, rows=rows, pool_slots=30_000)
    tiles = -(-2000 // (spec.row_tiles[-1] // spec.shape.group))
    # the row at the end of the path may read it alone
    assert plan_and_pack(batch, spec, capacity) <= (tiles + 1) * 900 + 2000 * 10


def test_equal_batches_get_equal_plans() -> None:
    spec = spec_of("Llama 8B")
    capacity = capacity_for(spec, rows=65, pool_slots=7000)
    make = functools.partial(frugal_plan, growing(60, 100).forest, spec, cost_model(spec), capacity)
    assert make().to_dict() == make().to_dict()


def test_a_batch_that_the_pool_cannot_hold_is_refused() -> None:
    """Rows whose common slots nobody has proven: the caller then has to find them."""
    spec = spec_of("Llama 8B")
    forest = PrefixForest.from_radix_paths(RadixPaths.private(3), np.array([100, 100, 100]))
    capacity = PlanCapacity(3, 99, 99, 299 + 3 * HEADROOM)
    with pytest.raises(PlanCapacityError, match="needs 684 kv_index but the buffers hold 683"):
        frugal_plan(forest, spec, cost_model(spec), capacity)
    with pytest.raises(PlanCapacityError, match="needs 3 rows"):
        frugal_plan(forest, spec, cost_model(spec), dataclasses.replace(capacity, rows=2))


def nbytes(capacity: PlanCapacity, spec: PlanSpec) -> int:
    part_bytes = spec.shape.num_kv_heads * spec.shape.partial_bytes
    return 4 * capacity.kv_index + part_bytes * capacity.parts


@pytest.mark.parametrize("rows", [33, 257, 2049, 4097])
@pytest.mark.parametrize("pool_slots", [20_000, 440_000, 5_000_000])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_proof_costs_little_memory(rows: int, pool_slots: int, shape: str) -> None:
    """Seven parts a row at the most, and a few percent of what the pool itself takes."""
    spec = spec_of(shape)
    capacity = capacity_for(spec, rows=rows, pool_slots=pool_slots)
    least = 4 * rows + 32 * spec.num_slots
    assert least <= capacity.parts <= max(least, 7.1 * rows)
    assert capacity.tasks >= capacity.parts
    assert capacity.kv_index >= pool_slots
    # it is what some number of copies needs, and no other number would take less
    assert any(
        rows_ranges(rows, fan) <= capacity.parts
        and (fan - 1) * pool_slots + rows * (HEADROOM + 6) <= capacity.kv_index
        for fan in FANS
    )
    for fan in FANS:
        other = dataclasses.replace(
            capacity,
            parts=max(least, rows_ranges(rows, fan)),
            kv_index=capacity.bundle_index + (fan - 2) * pool_slots,
        )
        assert nbytes(capacity, spec) <= nbytes(other, spec)


def test_a_pool_that_the_index_cannot_name_is_refused() -> None:
    spec = spec_of("Llama 8B")
    largest = capacity_for(spec, rows=4097, pool_slots=2**31 - 10**6)
    assert largest.kv_index < 2**31
    with pytest.raises(ValueError, match="--max-total-tokens"):
        capacity_for(spec, rows=4097, pool_slots=2**31 - 10**5)
