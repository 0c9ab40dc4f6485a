"""From radix paths to a packed plan in one call: the same as the stages one by one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_checker import check_packed
from plan_specs import SPEC, SPECS, UNLIMITED, cost_model
from random_paths import NODE, ROW, paths_of
from token_rows import TokenRows

from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.packed import PackedPlan, pack
from sglang_codec.planning.paths import RadixPaths
from sglang_codec.planning.plan import PlanCapacity, PlanCapacityError, PlanLayout, PlanSpec
from sglang_codec.planning.planner import Planner, make_plan

UNTOUCHED = -12345


def both_ways(
    paths: RadixPaths, lengths: np.ndarray, spec: PlanSpec, spare: int
) -> tuple[PackedPlan, np.ndarray]:
    """What one call packs, which is compared with what the stages pack."""
    forest = PrefixForest.from_radix_paths(paths, lengths, private_tokens=1)
    plan = make_plan(forest, spec, cost_model(spec), UNLIMITED)
    sizes = (plan.batch, plan.num_tasks, plan.num_parts, plan.kv_entries, plan.bundle_entries)
    capacity = PlanCapacity(*(size + spare for size in sizes))
    # where others that it was compared with do not fit any more, it may be another one
    plan = make_plan(forest, spec, cost_model(spec), capacity)
    layout = PlanLayout.of(capacity, spec)
    expected, out = (np.full(layout.size + 9, UNTOUCHED, np.int32) for _ in range(2))
    wanted = pack(forest, plan, layout, expected)
    found = Planner(spec, cost_model(spec), capacity).pack_paths(paths, lengths, layout, out)
    check_packed(out, layout, found, TokenRows.of_paths(paths, lengths, 1), spec)
    assert np.array_equal(out, expected)
    assert np.array_equal(found.max_lengths, wanted.max_lengths)
    assert found[:-1] == wanted[:-1]
    return found, out


@given(st.lists(NODE, max_size=12), st.lists(ROW, max_size=16), SPECS, st.integers(0, 40))
@settings(max_examples=200)
def test_one_call_packs_what_the_stages_do(
    nodes: list[tuple[int, int]], rows: list[tuple[int, int]], spec: PlanSpec, spare: int
) -> None:
    paths, lengths = paths_of(nodes, rows)
    both_ways(paths, lengths, spec, spare)


def test_a_large_batch_with_bundles_and_parts() -> None:
    rng = np.random.default_rng(5)
    nodes = [(0, 3000), *((int(rng.integers(1, 40)), int(rng.integers(1, 300))) for _ in range(40))]
    rows = [(int(rng.integers(0, 42)), int(rng.integers(1, 90))) for _ in range(700)]
    paths, lengths = paths_of(nodes, rows)
    spec = dataclasses.replace(SPEC, bundle_rows=64, tail_headroom=128)
    found, out = both_ways(paths, lengths, spec, 0)
    assert found.num_shared > 10
    assert found.kv_tokens_read < found.kv_tokens_stock
    assert (out[found.used :] == UNTOUCHED).all()


def test_what_does_not_fit_is_refused_with_its_name() -> None:
    paths, lengths = RadixPaths.private(3), np.full(3, 100, np.int32)
    for capacity, message in (
        (PlanCapacity(2, 99, 99, 999), "needs 3 rows"),
        (PlanCapacity(9, 99, 99, 299), "needs 300 kv_index"),
    ):
        layout = PlanLayout.of(capacity, SPEC)
        out = np.full(layout.size, UNTOUCHED, np.int32)
        with pytest.raises(PlanCapacityError, match=message):
            Planner(SPEC, cost_model(SPEC), capacity).pack_paths(paths, lengths, layout, out)
        assert (out == UNTOUCHED).all()
