"""A plan reads every KV token of every row exactly once, fits its buffers and says when not."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_specs import SPEC, SPECS, UNLIMITED, cost_model

from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.index import kv_index_of
from sglang_codec.planning.plan import (
    ALIGNED_ENTRIES,
    MERGE_INTS,
    MOST_PIECES,
    SLOT_INTS,
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
    check_plan,
    lengths_of,
    random_counts,
    rows_of,
    tree_counts,
    with_slots,
)

PAIR = st.tuples(st.integers(0, 99), st.sampled_from((0, 0, 1, 3, 17, 64, 200, 3000)))
COUNTS = st.builds(tree_counts, st.lists(PAIR, max_size=8), st.lists(PAIR, max_size=12))


def plan_of(
    paths: Paths, spec: PlanSpec = SPEC, capacity: PlanCapacity = UNLIMITED
) -> tuple[Plan, np.ndarray]:
    """A plan and the KV index that it reads, with -1 where no token has been put yet."""
    forest = PrefixForest.from_paths(paths)
    plan = make_plan(forest, spec, cost_model(spec), capacity)
    index = kv_index_of(forest, plan)
    assert index.shape == (plan.kv_entries,)
    filled = np.full(plan.kv_entries, -1, np.int32)
    for _, _, tokens, entry in plan.spans.tolist():
        filled[entry : entry + tokens] = index[entry : entry + tokens]
    return plan, filled


@given(COUNTS, SPECS)
@settings(max_examples=300)
def test_every_token_of_every_row_is_read_exactly_once(counts: Counts, spec: PlanSpec) -> None:
    paths = with_slots(counts, seed=1, spare=9)
    plan, kv_index = plan_of(paths, spec)
    check_plan(plan, kv_index, rows_of(paths), lengths_of(counts).tolist())


@given(COUNTS, SPECS)
def test_tasks_begin_where_slots_can_be_loaded_at_once(counts: Counts, spec: PlanSpec) -> None:
    plan, _ = plan_of(with_slots(counts, seed=1), spec)
    assert (plan.tasks[:, TASK_FIELDS.index("kv_start")] % ALIGNED_ENTRIES == 0).all()


@given(COUNTS, SPECS, st.data())
def test_growing_tails_need_no_new_plan(
    counts: Counts, spec: PlanSpec, data: st.DataObject
) -> None:
    """Slots appended at `append_base` are read, whichever row grows and however far."""
    paths = with_slots(counts, seed=2)
    plan, kv_index = plan_of(paths, spec)
    rows = [row.tolist() for row in rows_of(paths)]
    lengths = lengths_of(counts)
    assert (plan.max_lengths >= lengths).all()
    assert (plan.max_lengths <= lengths + spec.tail_headroom).all()
    next_slot = 1 << 20
    for row in range(plan.batch):
        growth = data.draw(st.integers(0, int(plan.max_lengths[row] - lengths[row])))
        for _ in range(growth):
            kv_index[plan.append_base[row] + len(rows[row])] = next_slot
            rows[row].append(next_slot)
            next_slot += 1
    check_plan(plan, kv_index, [np.array(row, np.int32) for row in rows], list(map(len, rows)))


def test_a_row_with_a_tail_may_grow_by_the_headroom() -> None:
    spec = dataclasses.replace(SPEC, tail_headroom=40)
    plan, _ = plan_of(with_slots([[("a", 500), ("t", 1)], [("a", 500)], [("b", 7)]]), spec)
    # the second row has no tokens of its own; it can grow if it lists those of the run itself
    can_grow = plan.append_base >= 0
    assert plan.max_lengths.tolist() == [541, 540 if can_grow[1] else 500, 47]
    assert can_grow[[0, 2]].all()


@given(COUNTS, SPECS)
def test_tasks_are_sorted_by_class_and_slot_and_fit_their_tile(
    counts: Counts, spec: PlanSpec
) -> None:
    plan, _ = plan_of(with_slots(counts), spec)
    assert plan.slot_indptr.shape == (spec.num_classes, spec.num_slots + 1)
    assert plan.slot_indptr[0, 0] == 0
    assert plan.slot_indptr[-1, -1] == plan.num_tasks
    assert (plan.slot_indptr[:-1, -1] == plan.slot_indptr[1:, 0]).all()
    for index in range(spec.num_classes):
        begin, end = plan.slot_indptr[index, 0], plan.slot_indptr[index, -1]
        query_rows = plan.tasks[begin:end, 3] * spec.group
        if index == len(spec.row_tiles):
            assert (query_rows <= spec.bundle_rows).all(), "too many rows in a bundle"
            assert (plan.tasks[begin:end, 7] <= MOST_PIECES).all(), "too many pieces in a bundle"
        else:
            assert (query_rows <= spec.row_tiles[index]).all(), "a tile is too small for its task"
            if index:
                assert (query_rows > spec.row_tiles[index - 1] - spec.group).all(), "too large"
        for slot in range(spec.num_slots):
            begin, end = plan.slot_indptr[index, slot : slot + 2]
            assert begin <= end
            assert (plan.slot[begin:end] == slot).all()
            assert (np.diff(plan.us[begin:end]) <= 1e-9).all(), "not longest first"


@given(COUNTS, SPECS)
def test_partial_rows_are_reserved_only_where_there_is_something_to_merge(
    counts: Counts, spec: PlanSpec
) -> None:
    plan, _ = plan_of(with_slots(counts), spec)
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
        plan, _ = plan_of(with_slots([counts[row] for row in order]), spec)
        tasks = zip(plan.start, plan.tasks[:, 1], plan.tasks[:, 3], plan.us.round(6), strict=True)
        lengths = Counter(zip(order, plan.max_lengths.tolist(), strict=True))
        return Counter(map(tuple, tasks)), lengths, round(plan.makespan_us, 6)

    assert figures(rows) == figures(sorted(rows))


def test_equal_batches_get_equal_plans() -> None:
    counts = random_counts(3, batch=40)
    first, second = (plan_of(with_slots(counts))[0] for _ in range(2))
    assert first.to_dict() == second.to_dict()


@pytest.mark.parametrize(("batch", "nodes"), [(256, 1), (1024, 60), (1024, 700)])
@pytest.mark.parametrize("headroom", [0, 64])
def test_large_batches(batch: int, nodes: int, headroom: int) -> None:
    counts = random_counts(4, batch=batch, nodes=nodes, longest_run=400, longest_tail=60)
    paths = with_slots(counts)
    plan, kv_index = plan_of(paths, dataclasses.replace(SPEC, tail_headroom=headroom))
    check_plan(plan, kv_index, rows_of(paths), lengths_of(counts).tolist())
    assert plan.kv_tokens_read < plan.kv_tokens_stock


def test_many_small_forests() -> None:
    for seed in range(300):
        rng = np.random.default_rng(seed)
        counts = random_counts(
            seed, batch=int(rng.integers(1, 20)), nodes=int(rng.integers(0, 9)), longest_tail=30
        )
        paths = with_slots(counts, seed=seed)
        plan, kv_index = plan_of(paths, dataclasses.replace(SPEC, tail_headroom=seed % 3))
        check_plan(plan, kv_index, rows_of(paths), lengths_of(counts).tolist())


def test_an_empty_batch_has_an_empty_plan() -> None:
    plan, kv_index = plan_of([])
    assert (plan.batch, plan.num_tasks, plan.num_parts, len(kv_index)) == (0, 0, 0, 0)
    assert plan.makespan_us == 0.0


def test_a_batch_of_empty_rows_has_no_tasks() -> None:
    plan, _ = plan_of([[], []])
    assert (plan.batch, plan.num_tasks) == (2, 0)
    assert np.diff(plan.part_indptr).tolist() == [0, 0]


def test_a_shared_prefix_is_read_once() -> None:
    counts = [[("prompt", 20_000), (f"question {row}", 100)] for row in range(16)]
    plan, _ = plan_of(with_slots(counts))
    assert plan.kv_tokens_read == 20_000 + 16 * 100
    assert plan.kv_tokens_stock == 16 * 20_100


def test_more_readers_than_a_tile_holds_read_it_once_per_tile() -> None:
    counts = [[("prompt", 20_000), (f"question {row}", 100)] for row in range(17)]
    plan, _ = plan_of(with_slots(counts))  # 64 // 4 = 16 rows in a tile
    assert plan.kv_tokens_read == 2 * 20_000 + 17 * 100


def test_a_long_private_row_is_split_over_the_slots() -> None:
    plan, _ = plan_of(with_slots([[("alone", 100_000)]]))
    assert plan.num_tasks == SPEC.num_slots
    assert plan.slot_load.min() > 0.5 * plan.slot_load.max()


@pytest.mark.parametrize("slots", [8, 16, 33, 66, 132])
@pytest.mark.parametrize("tokens", [10_000, 50_000, 100_000, 123_457])
def test_a_lone_row_takes_no_longer_than_the_best_even_split(slots: int, tokens: int) -> None:
    spec = dataclasses.replace(SPEC, num_slots=slots)
    plan, _ = plan_of(with_slots([[("alone", tokens)]]), spec)
    blocks = -(-tokens // spec.block_kv)
    longest = -(-blocks // slots) * spec.block_kv
    even = cost_model(spec).task_us(np.array([16]), np.array([longest]))[0]
    assert plan.makespan_us <= 1.12 * even


@given(COUNTS, SPECS)
def test_a_plan_never_needs_more_than_it_says(counts: Counts, spec: PlanSpec) -> None:
    """Buffers of exactly the size of the plan hold it; it is found again under that limit."""
    paths = with_slots(counts)
    plan, _ = plan_of(paths, spec)
    exact = PlanCapacity(
        plan.batch, plan.num_tasks, plan.num_parts, plan.kv_entries, plan.bundle_entries
    )
    again, kv_index = plan_of(paths, spec, exact)
    check_plan(again, kv_index, rows_of(paths), lengths_of(counts).tolist())
    assert again.num_tasks <= exact.tasks
    assert again.num_parts <= exact.parts
    assert again.kv_entries <= exact.kv_index
    # schedules that need more are not tried any more, so another may win by a hair
    assert again.makespan_us <= 1.1 * plan.makespan_us + 1.0


def test_a_plan_that_does_not_fit_is_cut_more_coarsely() -> None:
    paths = with_slots([[("prompt", 50_000), (f"question {row}", 400)] for row in range(16)])
    plan, _ = plan_of(paths)
    coarse, kv_index = plan_of(paths, capacity=dataclasses.replace(UNLIMITED, tasks=17))
    assert plan.num_tasks > 17 == coarse.num_tasks
    check_plan(coarse, kv_index, rows_of(paths), [50_400] * 16)


def test_absorbed_runs_are_given_back_when_the_index_is_too_small() -> None:
    counts = [[("short", 8), (f"question {row}", 400)] for row in range(16)]
    plan, _ = plan_of(with_slots(counts))
    assert plan.absorbed.all()
    assert plan.kv_entries == 16 * 408
    unique = 8 + 16 * 400
    tight, kv_index = plan_of(
        with_slots(counts), capacity=dataclasses.replace(UNLIMITED, kv_index=unique)
    )
    assert not tight.absorbed.any()
    check_plan(tight, kv_index, rows_of(with_slots(counts)), [408] * 16)


def test_bundles_that_their_index_does_not_hold_are_not_made() -> None:
    counts = [[("prompt", 900), (f"own {row}", 20 + row % 7)] for row in range(200)]
    paths, spec = with_slots(counts), dataclasses.replace(SPEC, bundle_rows=64, tail_headroom=9)
    plan, _ = plan_of(paths, spec)
    assert plan.bundle_entries > 1000
    for limit in (plan.bundle_entries - 1, 100, 0):
        capacity = dataclasses.replace(UNLIMITED, bundle_index=limit)
        smaller, kv_index = plan_of(paths, spec, capacity)
        assert smaller.bundle_entries <= limit
        check_plan(smaller, kv_index, rows_of(paths), lengths_of(counts).tolist())


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


@given(COUNTS, SPECS)
@settings(max_examples=60)
def test_a_packed_plan_can_be_read_back(counts: Counts, spec: PlanSpec) -> None:
    plan, _ = plan_of(with_slots(counts), spec)
    capacity = PlanCapacity(plan.batch + 3, plan.num_tasks + 5, plan.num_parts + 2, 1 << 20)
    layout = PlanLayout(capacity, spec.num_classes, spec.num_slots)
    packed = np.full(layout.size, 77, np.int32)  # what an earlier plan left behind
    used = layout.pack(plan, packed)
    assert used <= layout.size

    for slot in range(spec.num_slots):
        bounds = packed[slot * SLOT_INTS :][: 2 * spec.num_classes].reshape(-1, 2)
        assert bounds.tolist() == plan.slot_indptr[:, slot : slot + 2].tolist()
    chunks_at, tasks_at = dataclasses.replace(layout, has_bundles=spec.bundle_rows > 0).task_counts
    assert packed[tasks_at] == plan.num_tasks
    assert packed[chunks_at] == plan.num_tasks - plan.num_bundles
    assert packed[layout.order :][: plan.batch].tolist() == plan.order.tolist()
    tasks = packed[layout.tasks :][: plan.tasks.size].reshape(-1, len(TASK_FIELDS))
    first_bundle = plan.num_tasks - plan.num_bundles
    assert tasks[:, :6].tolist() == plan.tasks[:, :6].tolist()
    assert tasks[:first_bundle].tolist() == plan.tasks[:first_bundle].tolist()
    # bundles name their pieces by where those lie in the packed plan
    for (*_, at, packed_count), (*_, first, count) in zip(
        tasks[first_bundle:].tolist(), plan.tasks[first_bundle:].tolist(), strict=True
    ):
        assert packed_count == count
        own = packed[at : at + 4 * count].reshape(-1, 4)
        assert own.tolist() == plan.pieces[first : first + count].tolist()
    base = packed[layout.append_base :][: capacity.rows]
    assert base.tolist() == plan.append_base.tolist() + [-1] * 3
    # the spans come last
    spans = packed[used - plan.spans.size : used]
    assert spans.reshape(-1, 4).tolist() == plan.spans.tolist()


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


@given(COUNTS, SPECS, st.integers(0, 100))
@settings(max_examples=60)
def test_the_packed_merges_are_the_rows_that_no_task_writes(
    counts: Counts, spec: PlanSpec, spare: int
) -> None:
    """Each with its parts in token order, the longest first, whatever the capacity."""
    plan, _ = plan_of(with_slots(counts), spec)
    capacity = PlanCapacity(
        plan.batch + spare, plan.num_tasks + spare, plan.num_parts + spare, 1 << 20
    )
    merges = packed_merges(plan, spec, capacity)
    direct = set()
    for _, _, first, queries, part, *_ in plan.tasks.tolist():
        if part < 0:
            direct.update(plan.order[first : first + queries].tolist())
    assert sorted(row for row, *_ in merges) == sorted(set(range(plan.batch)) - direct)
    for row, *parts in merges:
        expected = plan.part_rows[plan.part_indptr[row] : plan.part_indptr[row + 1]]
        assert parts == expected.tolist()
        assert -1 not in parts
    assert merges == sorted(merges, key=lambda merge: (-len(merge), merge[0]))


def test_rows_without_tokens_are_merged_from_nothing() -> None:
    plan, _ = plan_of(with_slots([[], [("a", 50)], []]))
    merges = packed_merges(plan, SPEC, PlanCapacity(3, 64, 64, 100))
    assert merges == [[0], [2]]


def test_a_single_real_partial_is_merged() -> None:
    """A lone part is direct only if the plan says so."""
    plan, _ = plan_of(with_slots([[("a", 50)], [("b", 50)]]))
    assert plan.part_rows.tolist() == [-1, -1]
    plan = dataclasses.replace(plan, part_rows=np.array([-1, 0], np.int32), num_parts=1)
    assert packed_merges(plan, SPEC, PlanCapacity(2, 64, 64, 200)) == [[1, 0]]


def test_sections_begin_on_task_boundaries() -> None:
    layout = PlanLayout(PlanCapacity(5, 7, 3, 10), 2, 33)
    sections = (layout.order, layout.merges, layout.append_base, layout.tasks)
    assert all(section % len(TASK_FIELDS) == 0 for section in sections)
    assert list(sections) == sorted(sections)


def test_packing_into_other_buffers_is_refused() -> None:
    plan, _ = plan_of(with_slots([[("a", 100)]]))
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


def test_a_group_larger_than_the_smallest_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="GQA group 17 is larger than the smallest row tile 16"):
        PlanSpec(17, 128, 2, (16, 64), 64, 33)


def test_spans_say_how_to_fill_the_index_from_any_readers_row() -> None:
    """What the device gathers from ``req_to_token`` equals the index made from named slots."""
    counts = random_counts(7, batch=30, nodes=9)
    paths = with_slots(counts, seed=7)
    plan, kv_index = plan_of(paths)
    rows = rows_of(paths)
    gathered = np.full(plan.kv_entries, -1, np.int32)
    for row, first, tokens, entry in plan.spans.tolist():
        gathered[entry : entry + tokens] = rows[row][first : first + tokens]
    assert gathered.tolist() == kv_index.tolist()


def test_a_plan_can_be_written_as_json() -> None:
    plan, _ = plan_of(with_slots(random_counts(8, batch=5)))
    data = json.loads(json.dumps(plan.to_dict()))
    assert data["tasks"] == len(data["task_table"]) == plan.num_tasks
    assert data["kv_tokens_read"] == plan.kv_tokens_read
