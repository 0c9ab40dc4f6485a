"""Bundles: who is put together, who never is, and that what is between them is read once."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_specs import SHAPE
from stages import UNLIMITED, machine_of, tables_of

from sglang_codec.planning.absorption import absorb
from sglang_codec.planning.bundles import bundle_tails
from sglang_codec.planning.cost_model import CostModel, roofline_cost_model
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.plan import PlanSpec
from sglang_codec.planning.planner import make_plan
from sglang_codec.planning.reading import Reading, read_forest
from sglang_codec.planning.structure import Forest
from sglang_codec.planning.windows import edges_of
from sglang_codec.testing import Counts, random_counts, tree_counts, with_slots

SPEC = PlanSpec(SHAPE, (16, 64), 64, 33, tail_headroom=16, bundle_rows=64)
COST: CostModel = roofline_cost_model(
    SHAPE,
    num_ctas=264,
    bandwidth=3e12,
    flops=8e14,
    task_overhead_us=6.0,
)
PAIR = st.tuples(st.integers(0, 99), st.sampled_from((0, 1, 16, 60, 200, 3000)))
COUNTS = st.builds(
    tree_counts, st.lists(PAIR, max_size=12), st.lists(PAIR, min_size=1, max_size=60)
)


def forest_of(counts: Counts) -> PrefixForest:
    return PrefixForest.from_paths(with_slots(counts))


def units_of(counts: Counts) -> tuple[PrefixForest, np.ndarray]:
    forest, machine = forest_of(counts), machine_of(SPEC, COST)
    tables = tables_of(forest)
    return forest, bundle_tails(tables, machine, edges_of(tables, machine)).units


def bundled(units: np.ndarray) -> np.ndarray:
    return units["last"] - units["first"] > 1


def tree(groups: int, rows: int, shared: int, tail: int) -> Counts:
    return [
        [("root", 5000), (f"group {g}", shared), (f"tail {g} {r}", tail)]
        for g in range(groups)
        for r in range(rows)
    ]


@given(COUNTS)
def test_units_part_the_rows_and_fit_the_tile(counts: Counts) -> None:
    forest, units = units_of(counts)
    assert units["first"][0] == 0
    assert units["last"][-1] == forest.batch
    assert (units["first"][1:] == units["last"][:-1]).all()
    size = units["last"] - units["first"]
    assert (size >= 1).all()
    assert (size * SPEC.shape.group <= SPEC.bundle_rows).all()


@given(COUNTS)
def test_rows_with_much_of_their_own_or_nothing_stay_alone(counts: Counts) -> None:
    forest, units = units_of(counts)
    tails = forest.length[forest.num_shared :]
    own = tails[np.repeat(bundled(units), units["last"] - units["first"])]
    assert (own > 0).all()
    start_up, token_us = COST.line(SPEC.bundle_rows)
    assert (own * token_us <= start_up + 1e-9).all()


@given(COUNTS)
def test_no_bundle_crosses_the_edge_of_a_long_run_with_many_readers(counts: Counts) -> None:
    forest, units = units_of(counts)
    start_up, token_us = COST.line(SPEC.bundle_rows)
    for node in range(forest.num_shared):
        is_wide = 2 * forest.readers[node] * SPEC.shape.group > SPEC.bundle_rows
        if is_wide and forest.length[node] * token_us > start_up:
            for edge in (forest.first[node], forest.last[node]):
                inside = (units["first"] < edge) & (edge < units["last"])
                assert not inside.any()


def test_groups_of_a_long_run_are_bundled_apart() -> None:
    forest, units = units_of(tree(40, 12, 3000, 16))
    edges = set(forest.first[1 : forest.num_shared].tolist())
    assert len(edges) == 40
    assert bundled(units).any()
    for unit in units:
        assert not edges & set(range(unit.first + 1, unit.last))


def reading_of(tables: Forest, machine: np.record, eager: float) -> Reading:
    """With bundles."""
    edges = edges_of(tables, machine)
    units = bundle_tails(tables, machine, edges)
    return read_forest(tables, units, absorb(tables, units, machine, edges, eager), machine)


@pytest.mark.parametrize("eager", [1.0, 8.0, math.inf])
def test_the_pieces_of_a_bundle_are_in_token_order(eager: float) -> None:
    """As a row's parts are: absorbed runs above a bundle are listed behind the runs it cuts."""
    machine = machine_of(SPEC, COST)
    for seed in range(4):
        tables = tables_of(
            forest_of(random_counts(seed, batch=300, nodes=80, longest_run=30, longest_tail=20))
        )
        reading = reading_of(tables, machine, eager)
        assert len(reading.bundles)
        for bundle in reading.bundles:
            starts = reading.pieces["start"][bundle.begin : bundle.end]
            assert (np.diff(starts) >= 0).all()


def test_many_short_tails_are_bundled_and_few_are_not() -> None:
    _, many = units_of(tree(64, 8, 16, 16))
    assert bundled(many).all()
    _, few = units_of(tree(2, 4, 16, 16))  # fewer rows than slots: each has one to itself
    assert not bundled(few).any()


def test_a_row_of_bundles_alone_needs_no_partials() -> None:
    """What is above a bundle joins it if that costs less than merging."""
    counts = [[(f"group {r // 8}", 16), (f"tail {r}", 16)] for r in range(512)]
    plan = make_plan(forest_of(counts), SPEC, COST, UNLIMITED)
    assert plan.num_bundles == plan.num_tasks < 512 / 4
    assert plan.num_parts == 0
    # groups of 8 do not straddle bundles of 16
    assert plan.kv_tokens_read == 64 * 16 + 512 * 16


def test_a_run_across_two_bundles_is_read_for_each() -> None:
    counts = [[(f"group {r // 10}", 20), (f"tail {r}", 16)] for r in range(640)]
    plan = make_plan(forest_of(counts), SPEC, COST, UNLIMITED)
    assert plan.num_bundles > 0
    unique = 64 * 20 + 640 * 16
    # at most one run is cut by each border between bundles
    assert unique < plan.kv_tokens_read <= unique + 20 * (plan.num_bundles - 1)


@pytest.mark.parametrize("rows", [0, 4])
def test_a_kernel_without_room_for_two_rows_has_no_bundles(rows: int) -> None:
    forest = forest_of(tree(64, 8, 16, 16))
    spec = PlanSpec(SHAPE, (16, 64), 64, 33, bundle_rows=rows)
    tables, machine = tables_of(forest), machine_of(spec, COST)
    assert not bundle_tails(tables, machine, edges_of(tables, machine)).bundles


@given(COUNTS)
def test_every_row_sees_its_own_tokens_and_no_others(counts: Counts) -> None:
    """Runs and pieces that a position reads tile its row, without a plan around them."""
    forest, machine = forest_of(counts), machine_of(SPEC, COST)
    tables = tables_of(forest)
    reading = reading_of(tables, machine, 1.0)
    for position, row in enumerate(forest.order.tolist()):
        read = [
            (run.start, run.start + run.length)
            for run in reading.runs
            if run.first <= position < run.last
        ]
        for bundle in reading.bundles:
            if bundle.first <= position < bundle.last:
                read += [
                    (piece.start, piece.start + piece.length)
                    for piece in reading.pieces[bundle.begin : bundle.end]
                    if piece.low <= position - bundle.first < piece.high
                ]
        read.sort()
        end = 0
        for begin, stop in read:
            assert begin == end
            end = stop
        assert end == forest.lengths[row]
