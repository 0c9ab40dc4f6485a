"""Member rows of beam groups beside random paths; test_sharing.py has the real scheduler."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_paths import NODE, ROW, paths_of
from step_record import pairs, path, proven_common

from sglang_codec.patches.beam_rows import BeamRows, beam_rows, with_members
from sglang_codec.planning.paths import RadixPaths

# of each group: which row leads it, how many members, and the prompt beyond the leader's leaf
GROUP = st.tuples(st.integers(0, 99), st.integers(0, 4), st.integers(-20, 20))


def step(paths: RadixPaths) -> dict[str, Any]:
    return {name: getattr(paths, name).tolist() for name in ("parent", "end", "leaf")}


@given(
    st.lists(NODE, max_size=12),
    st.lists(ROW, min_size=1, max_size=8),
    st.lists(GROUP, max_size=3),
    st.integers(0, 2),
)
def test_members_share_what_their_leader_proves_and_the_rest_of_the_prompt(
    nodes: list[tuple[int, int]],
    rows: list[tuple[int, int]],
    groups: list[tuple[int, int, int]],
    strangers: int,
) -> None:
    paths, _ = paths_of(nodes, rows)
    before, beams, first = step(paths), [], len(rows)
    for choice, members, beyond in groups:
        leader = choice % len(rows)
        if leader not in {group.leader for group in beams}:
            reach = before["end"][leaf] if (leaf := before["leaf"][leader]) >= 0 else 0
            beams.append(BeamRows(leader, first, first + members, max(reach + beyond, 1)))
            first += members
    after = step(with_members(paths, first + strangers, beams))

    assert all(above < node for node, above in enumerate(after["parent"]))
    starts = [after["end"][above] if above >= 0 else 0 for above in after["parent"]]
    assert all(start < end for start, end in zip(starts, after["end"], strict=True))
    assert after["leaf"][first:] == [-1] * strangers
    for one, other in pairs(before):
        assert proven_common(after, one, other) == proven_common(before, one, other)
    for leader, start, end, prompt in beams:
        above = [0, *(after["end"][node] for node in path(before, leader))]
        for member in range(start, end):
            common = proven_common(after, leader, member)
            # a node that ends behind the prompt is not cut: what is before it is proven
            within = max(end for end in above if end <= prompt)
            assert common == (prompt if above[-1] <= prompt else within)
            assert after["end"][after["leaf"][member]] <= prompt or after["leaf"][member] == -1


def batch_of(leader: int, start: int, end: int) -> SimpleNamespace:
    reqs = ["a", "b", "c"]
    group = SimpleNamespace(leader="b", prompt_len=9)
    entry = SimpleNamespace(group=group, leader_idx=leader, start=start, end=end)
    tail = SimpleNamespace(num_base_rows=len(reqs), entries=[entry])
    return SimpleNamespace(reqs=reqs, beam_tail=tail)


def test_groups_are_read_from_the_batch() -> None:
    assert beam_rows(batch_of(1, 0, 2), 5) == (BeamRows(1, 3, 5, 9),)
    assert beam_rows(SimpleNamespace(), 5) == ()


@pytest.mark.parametrize(("leader", "start", "end"), [(0, 0, 2), (1, 0, 3), (1, -1, 2), (1, 2, 1)])
def test_a_group_that_is_not_in_the_batch_is_refused(leader: int, start: int, end: int) -> None:
    with pytest.raises(ValueError, match="3 requests and 5 rows"):
        beam_rows(batch_of(leader, start, end), 5)


def test_batch_without_groups_keeps_its_paths() -> None:
    paths, _ = paths_of([(0, 5), (1, 2)], [(1, 1), (2, 1)])
    after = with_members(paths, 4, ())
    assert np.array_equal(after.leaf, [*paths.leaf, -1, -1])
