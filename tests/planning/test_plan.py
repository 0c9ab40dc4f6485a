"""A plan reads every KV token of every row exactly once, fits its buffers and says when not."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plan_checker import check_plan
from plan_specs import SPEC, SPECS, UNLIMITED, cost_model
from token_rows import TokenRows

from sglang_codec.attention_shape import AttentionShape
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.index import kv_index_of
from sglang_codec.planning.plan import (
    MERGE_INTS,
    TASK_FIELDS,
    Plan,
    PlanCapacity,
    PlanCapacityError,
    PlanLayout,
    PlanSpec,
)
from sglang_codec.planning.planner import make_plan
from sglang_codec.testing import (
    Counts,
    Paths,
    random_counts,
    rows_of,
    tree_counts,
    with_slots,
)

PAIR = st.tuples(st.integers(0, 99), st.sampled_from((0, 0, 1, 3, 17, 64, 200, 3000)))
COUNTS = st.builds(tree_counts, st.lists(PAIR, max_size=8), st.lists(PAIR, max_size=12))


def plan_of(paths: Paths, spec: PlanSpec = SPEC, capacity: PlanCapacity = UNLIMITED) -> Plan:
    """A plan that the checker has found to be right."""
    forest = PrefixForest.from_paths(paths)
    plan = make_plan(forest, spec, cost_model(spec), capacity)
    check_plan(plan, TokenRows.of_slots(rows_of(paths)), spec, forest)
    capacity.check(
        tasks=plan.num_tasks,
        parts=plan.num_parts,
        kv_index=plan.kv_entries,
        bundle_index=plan.bundle_entries,
    )
    return plan


@given(COUNTS, SPECS)
@settings(max_examples=300)
def test_every_token_of_every_row_is_read_exactly_once(counts: Counts, spec: PlanSpec) -> None:
    plan_of(with_slots(counts, seed=1, spare=9), spec)


def test_a_row_with_a_tail_may_grow_by_the_headroom() -> None:
    spec = dataclasses.replace(SPEC, tail_headroom=40)
    plan = plan_of(with_slots([[("a", 500), ("t", 1)], [("a", 500)], [("b", 7)]]), spec)
    # the second row has no tokens of its own; it can grow if it lists those of the run itself
    can_grow = plan.append_base >= 0
    assert plan.max_lengths.tolist() == [541, 540 if can_grow[1] else 500, 47]
    assert can_grow[[0, 2]].all()


@given(COUNTS, SPECS, st.sampled_from((2, 3, 8)))
@settings(max_examples=60)
def test_a_request_is_one_query_with_as_many_times_the_heads(
    counts: Counts, spec: PlanSpec, query_rows: int
) -> None:
    """Nothing else of a plan tells how many query rows there are, but that tails say their row."""
    rows = query_rows * spec.shape.num_qo_heads
    assume(rows // spec.shape.num_kv_heads <= spec.row_tiles[-1])
    paths = with_slots(counts, seed=1)
    forest = PrefixForest.from_paths(paths).through_window(0, query_rows=query_rows)
    shapes = (
        dataclasses.replace(spec.shape, query_rows=query_rows),
        dataclasses.replace(spec.shape, num_qo_heads=rows),
    )
    several, one = (
        make_plan(forest, dataclasses.replace(spec, shape=shape), cost_model(spec), UNLIMITED)
        for shape in shapes
    )
    is_tail = np.isin(several.node, np.arange(forest.num_shared, forest.num_nodes))
    assert (several.tasks[is_tail, 5] >= 0).all()
    assert (several.pieces[several.piece_node >= forest.num_shared, 2] >= 0).all()
    for plan in (several, one):
        plan.tasks[is_tail, 5] = plan.tasks[is_tail, 7] = 0
        plan.pieces[:, 2] = 0
    for field in dataclasses.fields(Plan):
        assert np.array_equal(getattr(several, field.name), getattr(one, field.name)), field.name


@given(COUNTS, SPECS)
def test_the_tasks_of_a_slot_run_longest_first(counts: Counts, spec: PlanSpec) -> None:
    plan = plan_of(with_slots(counts), spec)
    kind = np.repeat(np.arange(spec.num_classes), plan.slot_indptr[:, -1] - plan.slot_indptr[:, 0])
    cell = kind * spec.num_slots + plan.slot
    assert (np.diff(cell) >= 0).all()
    assert (np.diff(plan.us)[np.diff(cell) == 0] <= 1e-9).all()


@given(COUNTS, SPECS)
def test_partial_rows_are_reserved_only_where_there_is_something_to_merge(
    counts: Counts, spec: PlanSpec
) -> None:
    plan = plan_of(with_slots(counts), spec)
    per_row = np.diff(plan.part_indptr)
    if (per_row <= 1).all() and (plan.tasks[:, 3] == 1).all():
        assert plan.num_parts == 0
    listed = np.repeat(per_row > 1, per_row)
    assert (plan.part_rows[listed] >= 0).all()
    assert plan.num_parts <= plan.tasks[:, 3].sum() == len(plan.part_rows)


@given(COUNTS, SPECS, st.randoms(use_true_random=False))
def test_the_order_of_the_batch_changes_nothing_that_matters(
    counts: Counts, spec: PlanSpec, shuffler: random.Random
) -> None:
    rows = list(range(len(counts)))
    shuffler.shuffle(rows)
    # which rows of a run are bundled together is up to their order
    spec = dataclasses.replace(spec, bundle_rows=0)

    def figures(order: list[int]) -> tuple:
        plan = plan_of(with_slots([counts[row] for row in order]), spec)
        tasks = zip(plan.start, plan.tasks[:, 1], plan.tasks[:, 3], plan.us.round(6), strict=True)
        lengths = Counter(zip(order, plan.max_lengths.tolist(), strict=True))
        return Counter(map(tuple, tasks)), lengths, round(plan.makespan_us, 6)

    assert figures(rows) == figures(sorted(rows))


def test_equal_batches_get_equal_plans() -> None:
    counts = random_counts(3, batch=40)
    first, second = (plan_of(with_slots(counts)) for _ in range(2))
    assert first.to_dict() == second.to_dict()


@pytest.mark.parametrize(("batch", "nodes"), [(256, 1), (1024, 60), (1024, 700)])
@pytest.mark.parametrize("headroom", [0, 64])
def test_large_batches(batch: int, nodes: int, headroom: int) -> None:
    counts = random_counts(4, batch=batch, nodes=nodes, longest_run=400, longest_tail=60)
    plan = plan_of(with_slots(counts), dataclasses.replace(SPEC, tail_headroom=headroom))
    assert plan.kv_tokens_read < plan.kv_tokens_stock


def test_many_small_forests() -> None:
    for seed in range(300):
        rng = np.random.default_rng(seed)
        counts = random_counts(
            seed, batch=int(rng.integers(1, 20)), nodes=int(rng.integers(0, 9)), longest_tail=30
        )
        plan_of(with_slots(counts, seed=seed), dataclasses.replace(SPEC, tail_headroom=seed % 3))


def test_an_empty_batch_has_an_empty_plan() -> None:
    plan = plan_of([])
    assert (plan.batch, plan.num_tasks, plan.num_parts, plan.kv_entries) == (0, 0, 0, 0)
    assert plan.makespan_us == 0.0


def test_a_batch_of_empty_rows_has_no_tasks() -> None:
    plan = plan_of([[], []])
    assert (plan.batch, plan.num_tasks) == (2, 0)
    assert np.diff(plan.part_indptr).tolist() == [0, 0]


def test_a_shared_prefix_is_read_once() -> None:
    counts = [[("prompt", 20_000), (f"question {row}", 100)] for row in range(16)]
    plan = plan_of(with_slots(counts))
    assert plan.kv_tokens_read == 20_000 + 16 * 100
    assert plan.kv_tokens_stock == 16 * 20_100


def test_more_readers_than_a_tile_holds_read_it_once_per_tile() -> None:
    counts = [[("prompt", 20_000), (f"question {row}", 100)] for row in range(17)]
    plan = plan_of(with_slots(counts))  # 64 // 4 = 16 rows in a tile
    assert plan.kv_tokens_read == 2 * 20_000 + 17 * 100


def test_a_long_private_row_is_split_over_the_slots() -> None:
    plan = plan_of(with_slots([[("alone", 100_000)]]))
    assert plan.num_tasks == SPEC.num_slots
    assert plan.slot_load.min() > 0.5 * plan.slot_load.max()


@pytest.mark.parametrize("slots", [8, 16, 33, 66, 132])
@pytest.mark.parametrize("tokens", [10_000, 50_000, 100_000, 123_457])
def test_a_lone_row_takes_no_longer_than_the_best_even_split(slots: int, tokens: int) -> None:
    spec = dataclasses.replace(SPEC, num_slots=slots)
    plan = plan_of(with_slots([[("alone", tokens)]]), spec)
    blocks = -(-tokens // spec.block_kv)
    longest = -(-blocks // slots) * spec.block_kv
    even = cost_model(spec).task_us(np.array([16]), np.array([longest]))[0]
    assert plan.makespan_us <= 1.12 * even


@given(COUNTS, SPECS)
def test_a_plan_never_needs_more_than_it_says(counts: Counts, spec: PlanSpec) -> None:
    """Buffers of exactly the size of the plan hold it; it is found again under that limit."""
    paths = with_slots(counts)
    plan = plan_of(paths, spec)
    exact = PlanCapacity(
        plan.batch, plan.num_tasks, plan.num_parts, plan.kv_entries, plan.bundle_entries
    )
    again = plan_of(paths, spec, exact)
    # schedules that need more are not tried any more, so another may win by a hair
    assert again.makespan_us <= 1.1 * plan.makespan_us + 1.0


def test_a_plan_that_does_not_fit_is_cut_more_coarsely() -> None:
    paths = with_slots([[("prompt", 50_000), (f"question {row}", 400)] for row in range(16)])
    plan = plan_of(paths)
    coarse = plan_of(paths, capacity=dataclasses.replace(UNLIMITED, tasks=17))
    assert plan.num_tasks > 17 == coarse.num_tasks


def test_absorbed_runs_are_given_back_when_the_index_is_too_small() -> None:
    counts = [[("short", 8), (f"question {row}", 400)] for row in range(16)]
    plan = plan_of(with_slots(counts))
    assert plan.absorbed.all()
    assert plan.kv_entries == 16 * 408
    unique = 8 + 16 * 400
    tight = plan_of(with_slots(counts), capacity=dataclasses.replace(UNLIMITED, kv_index=unique))
    assert not tight.absorbed.any()


def test_bundles_that_their_index_does_not_hold_are_not_made() -> None:
    counts = [[("prompt", 900), (f"own {row}", 20 + row % 7)] for row in range(200)]
    paths, spec = with_slots(counts), dataclasses.replace(SPEC, bundle_rows=64, tail_headroom=9)
    plan = plan_of(paths, spec)
    assert plan.bundle_entries > 1000
    for limit in (plan.bundle_entries - 1, 100, 0):
        capacity = dataclasses.replace(UNLIMITED, bundle_index=limit)
        assert plan_of(paths, spec, capacity).bundle_entries <= limit


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"rows": 15}, r"needs 16 rows but the buffers hold 15.*PlanCapacity\(rows>=16\)"),
        ({"tasks": 16, "kv_index": 11_600}, "needs 17 tasks but the buffers hold 16"),
        ({"parts": 31, "kv_index": 11_600}, "needs 32 parts but the buffers hold 31"),
        ({"kv_index": 9_999}, "needs 11600 kv_index but the buffers hold 9999"),
    ],
)
def test_a_plan_that_cannot_fit_is_refused(limit: dict[str, int], message: str) -> None:
    counts = [[("prompt", 10_000), (f"question {row}", 100)] for row in range(16)]
    with pytest.raises(PlanCapacityError, match=message):
        plan_of(with_slots(counts), capacity=dataclasses.replace(UNLIMITED, **limit))


def test_headroom_counts_against_the_index() -> None:
    spec = dataclasses.replace(SPEC, tail_headroom=100)
    capacity = dataclasses.replace(UNLIMITED, kv_index=199)
    with pytest.raises(PlanCapacityError, match="200 kv_index"):
        plan_of(with_slots([[("a", 100)]]), spec, capacity)


def packed_merges(plan: Plan, spec: PlanSpec, capacity: PlanCapacity) -> list[list[int]]:
    """``[batch row, *its partial rows]`` of each listed merge, from a packed plan."""
    layout = PlanLayout.of(capacity, spec)
    packed = np.full(layout.size, 77, np.int32)
    used = layout.pack(plan, packed)
    records = packed[layout.merges : layout.append_base].reshape(-1, MERGE_INTS)
    assert len(records) >= 1 + capacity.rows
    listed, batch = records[0, :2].tolist()
    assert batch == plan.batch
    merges = []
    for row, first, last, _ in records[1 : 1 + listed].tolist():
        assert layout.tasks + plan.tasks.size <= first <= last <= used - plan.spans.size
        merges.append([row, *packed[first:last].tolist()])
    return merges


def test_rows_without_tokens_are_merged_from_nothing() -> None:
    plan = plan_of(with_slots([[], [("a", 50)], []]))
    merges = packed_merges(plan, SPEC, PlanCapacity(3, 64, 64, 100))
    assert merges == [[0], [2]]


def test_a_single_real_partial_is_merged() -> None:
    """A lone part is direct only if the plan says so."""
    plan = plan_of(with_slots([[("a", 50)], [("b", 50)]]))
    assert plan.part_rows.tolist() == [-1, -1]
    plan = dataclasses.replace(plan, part_rows=np.array([-1, 0], np.int32), num_parts=1)
    assert packed_merges(plan, SPEC, PlanCapacity(2, 64, 64, 200)) == [[1, 0]]


def test_sections_begin_on_task_boundaries() -> None:
    layout = PlanLayout(PlanCapacity(5, 7, 3, 10), 2, 33)
    sections = (layout.order, layout.merges, layout.append_base, layout.tasks)
    assert all(section % len(TASK_FIELDS) == 0 for section in sections)
    assert list(sections) == sorted(sections)


def test_packing_into_other_buffers_is_refused() -> None:
    plan = plan_of(with_slots([[("a", 100)]]))
    capacity = PlanCapacity(4, 64, 64, 100)
    other = PlanLayout(capacity, 2, SPEC.num_slots + 1)
    with pytest.raises(ValueError, match="2 classes and 33 slots.*made for 2 and 34"):
        other.pack(plan, np.zeros(other.size, np.int32))
    small = PlanLayout(dataclasses.replace(capacity, kv_index=99), 2, SPEC.num_slots)
    with pytest.raises(PlanCapacityError, match="needs 100 kv_index but the buffers hold 99"):
        small.pack(plan, np.zeros(small.size, np.int32))


def test_a_forest_without_slots_has_no_index() -> None:
    forest = PrefixForest.from_dict(PrefixForest.from_paths(with_slots([[("a", 9)]])).to_dict())
    plan = make_plan(forest, SPEC, cost_model(SPEC), UNLIMITED)
    with pytest.raises(ValueError, match="no KV slots: build it with PrefixForest.from_paths"):
        kv_index_of(forest, plan)


def test_a_request_larger_than_the_largest_tile_is_refused() -> None:
    shape = AttentionShape.plain(17, 1, 128)
    assert PlanSpec(dataclasses.replace(shape, query_rows=3), (16, 64), 64, 33)
    says = "17 are 68 rows of a query tile, the limit is 64: at most 3 query rows of this group"
    with pytest.raises(ValueError, match=says):
        PlanSpec(dataclasses.replace(shape, query_rows=4), (16, 64), 64, 33)
    with pytest.raises(ValueError, match="windows of several query rows are not planned for: 17/1"):
        PlanSpec(dataclasses.replace(shape, query_rows=2, window=9), (16, 64), 64, 33)


@given(COUNTS, SPECS)
def test_the_index_made_on_the_host_is_what_the_spans_gather(
    counts: Counts, spec: PlanSpec
) -> None:
    paths = with_slots(counts, seed=7)
    rows, plan = rows_of(paths), plan_of(paths, spec)
    gathered = np.zeros(plan.kv_entries, np.int32)
    for row, first, tokens, entry in plan.spans.tolist():
        gathered[entry : entry + tokens] = rows[row][first : first + tokens]
    assert kv_index_of(PrefixForest.from_paths(paths), plan).tolist() == gathered.tolist()


def test_a_plan_can_be_written_as_json() -> None:
    plan = plan_of(with_slots(random_counts(8, batch=5)))
    data = json.loads(json.dumps(plan.to_dict()))
    assert data["tasks"] == len(data["task_table"]) == plan.num_tasks
    assert data["kv_tokens_read"] == plan.kv_tokens_read
