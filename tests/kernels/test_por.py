"""POR on its own: the exact merge of partial results."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_codec.kernels import por as por_module
from sglang_codec.kernels.por import por
from sglang_codec.planning.plan import MERGE_INTS
from sglang_codec.testing import assert_lse_close

HEADS, HEAD_DIM = 3, 64


def packed(
    lists: list[list[int]], offset: int, device: torch.device, *, stale: int = 0
) -> torch.Tensor:
    """A packed plan of which POR sees only its own list: `lists[r]` are the parts of row r.

    It has room for `stale` more rows, whose records an earlier plan has left behind.
    """
    listed = [row for row, parts in enumerate(lists) if parts != [-1]]
    listed.sort(key=lambda row: -len(lists[row]))
    size = offset + MERGE_INTS * (1 + len(listed) + stale)
    bounds = [size, *(size + total for total in itertools.accumulate(map(len, lists)))]
    records = [[len(listed), len(lists), 0, 0]]
    records += [[row, bounds[row], bounds[row + 1], 0] for row in listed]
    records += [[0, 0, 1 << 30, 0]] * stale
    plan = [7] * offset + sum(records, []) + sum(lists, []) + [0]
    return torch.tensor(plan, dtype=torch.int32, device=device)


@contextmanager
def at_most(programs: int) -> Iterator[None]:
    """A grid of no more programs than this."""
    with mock.patch.object(por_module, "_most_programs", return_value=programs):
        yield


def partials(
    count: int, device: torch.device, heads: int = HEADS
) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.randn(count, heads, HEAD_DIM, device=device),
        torch.randn(count, heads, device=device) * 8,
    )


def merge(
    lists: list[list[int]],
    values: torch.Tensor,
    lse: torch.Tensor,
    *,
    with_lse: bool = True,
    rows: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and LSE of `rows` rows, in tensors that were NaN before; the batch's if None."""
    device = values.device
    rows = len(lists) if rows is None else rows
    out = torch.full((rows, *values.shape[1:]), float("nan"), device=device)
    merged = torch.full((rows, values.shape[1]), float("nan"), device=device)
    plan = packed(lists, 16, device, stale=max(rows - len(lists), 0) + 2)
    por(out, merged if with_lse else None, values, lse, plan, merges_offset=16)
    return out, merged


def exact(
    lists: list[list[int]], values: torch.Tensor, lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The merge in fp64, by its definition."""
    out = torch.zeros(len(lists), *values.shape[1:], dtype=torch.float64, device=values.device)
    merged = torch.full(out.shape[:2], -float("inf"), dtype=torch.float64, device=values.device)
    for row, parts in enumerate(lists):
        if parts and parts != [-1]:
            weight = torch.exp2(lse[parts].double())
            total = weight.sum(0)
            nonzero = total > 0
            sums = (weight[:, :, None] * values[parts].double()).sum(0)
            out[row][nonzero] = sums[nonzero] / total[nonzero, None]
            merged[row] = total.log2()
    return out, merged


def check(lists: list[list[int]], values: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    out, merged = merge(lists, values, lse)
    expected, expected_lse = exact(lists, values, lse)
    assert_lse_close(merged, expected_lse)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    return out


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 16, 17, 33])
def test_any_number_of_parts(count: int, device: torch.device) -> None:
    values, lse = partials(count + 2, device)
    check([[*range(count)], [*range(2, count + 2)]], values, lse)


@pytest.mark.parametrize("programs", [1, 2, 5, 1 << 20])
def test_any_number_of_programs(programs: int, device: torch.device) -> None:
    """One program does everything, or each has one head of one row, or anything between."""
    values, lse = partials(9, device)
    lse[4] = -float("inf")
    with at_most(programs):
        check([[0, 1, 2, 3, 4], [], [5, 6], [4], [7, 8, 4]], values, lse)


@pytest.mark.parametrize("heads", [1, 4, 5, 8])
@pytest.mark.parametrize("programs", [2, 1 << 20])
def test_any_number_of_heads(heads: int, programs: int, device: torch.device) -> None:
    """The last program of a row may have fewer heads; the row behind it is another's."""
    values, lse = partials(5, device, heads)
    with at_most(programs):
        check([[0, 1, 2], [3, 4], [1]], values, lse)
        out, _ = merge([[0, 1], [-1], [3, 4], [-1]], values, lse)
    assert out[[1, 3]].isnan().all()


# a part list: none, the one that PAC wrote directly, or partials
PART_LISTS = st.one_of(
    st.just([]),
    st.just([-1]),
    st.lists(st.integers(0, 39), min_size=1, max_size=40, unique=True),
)


@given(
    st.lists(PART_LISTS, max_size=5),
    st.integers(0, 3),
    st.sampled_from((1, 2, 3, 7, 64)),
    st.data(),
)
@settings(max_examples=25, deadline=None)
def test_every_row_is_merged_zeroed_or_left_alone(
    device: torch.device, lists: list[list[int]], padding: int, programs: int, data: st.DataObject
) -> None:
    """Whatever the plan lists, however many rows the output has beyond it, with any grid."""
    values, lse = partials(40, device)
    listed = {part for parts in lists for part in parts}
    unlisted = sorted(set(range(40)) - listed)
    # partial rows that no row lists hold anything
    values[unlisted] = lse[unlisted] = float("nan")
    empty = data.draw(st.sets(st.sampled_from(sorted(listed - {-1}) or [0])))
    for part in empty & listed:
        values[part], lse[part] = 0.0, -float("inf")
    with at_most(programs):
        out, merged = merge(lists, values, lse, rows=len(lists) + padding)
    expected, expected_lse = exact([*lists, *[[]] * padding], values, lse)
    direct = torch.tensor([parts == [-1] for parts in lists] + [False] * padding, dtype=torch.bool)
    assert out[direct].isnan().all()
    assert merged[direct].isnan().all()
    torch.testing.assert_close(out[~direct].double(), expected[~direct], rtol=1e-5, atol=1e-5)
    assert_lse_close(merged[~direct], expected_lse[~direct])


def test_nothing_is_touched_where_pac_has_written_every_row(device: torch.device) -> None:
    values, lse = partials(1, device)
    values[:] = lse[:] = float("nan")
    for batch in (1, 4):
        out, merged = merge([[-1]] * batch, values, lse)
        assert out.isnan().all()
        assert merged.isnan().all()


@pytest.mark.parametrize("programs", [2, 1 << 20])
@pytest.mark.parametrize("rows", [3, 4, 13])
def test_padding_may_exceed_what_the_plan_has_room_for(
    rows: int, programs: int, device: torch.device
) -> None:
    """The plan ends with its part lists; what lies behind shows under a memory checker only."""
    values, lse = partials(4, device)
    plan = packed([[0, 1], [2, 3, 0]], 16, device)
    out = torch.full((rows, HEADS, HEAD_DIM), float("nan"), device=device)
    merged = torch.full((rows, HEADS), float("nan"), device=device)
    with at_most(programs):
        por(out, merged, values, lse, plan, merges_offset=16)
    expected, expected_lse = exact([[0, 1], [2, 3, 0], *[[]] * (rows - 2)], values, lse)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    assert_lse_close(merged, expected_lse)


@pytest.mark.parametrize(
    "change",
    [
        {"out": (2, HEADS + 1, HEAD_DIM)},
        {"out": (1, 2, HEADS, HEAD_DIM)},
        {"out": (2, HEADS * HEAD_DIM)},
        {"lse": (1, HEADS)},
        {"lse": (HEADS, 2)},
        {"partial_out": (4, HEADS, HEAD_DIM // 2)},
    ],
    ids=str,
)
def test_tensors_that_do_not_match_are_refused(
    change: dict[str, tuple[int, ...]], device: torch.device
) -> None:
    shapes = {"out": (2, HEADS, HEAD_DIM), "lse": (2, HEADS), "partial_out": (4, HEADS, HEAD_DIM)}
    tensors = {name: torch.zeros(at, device=device) for name, at in (shapes | change).items()}
    plan = packed([[0, 1], [2, 3]], 16, device)
    lse = torch.zeros(4, HEADS, device=device)
    with pytest.raises(ValueError, match=r"por needs .*; got out \("):
        por(**tensors, partial_lse=lse, plan=plan, merges_offset=16)


def test_rows_beyond_the_output_are_not_written(device: torch.device) -> None:
    """A plan of more rows than the output has, as between two captured batches."""
    values, lse = partials(4, device)
    lists = [[0, 1], [2, 3], [0, 1, 2, 3], [], [1, 2]]
    whole, whole_lse = merge(lists, values, lse)
    for rows in range(6):
        out = torch.full((6, HEADS, HEAD_DIM), float("nan"), device=device)
        merged = torch.full((6, HEADS), float("nan"), device=device)
        plan = packed(lists, 16, device)
        por(out[:rows], merged[:rows], values, lse, plan, merges_offset=16)
        written = min(rows, len(lists))
        torch.testing.assert_close(out[:written], whole[:written], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(merged[:written], whole_lse[:written])
        assert (out[written:rows] == 0).all()
        assert out[rows:].isnan().all()
        assert merged[rows:].isnan().all()


@pytest.mark.parametrize("programs", [(2, 3), (1 << 20, 1 << 20)], ids=["many pairs", "few pairs"])
def test_the_same_parts_give_the_same_bits(programs: tuple[int, int], device: torch.device) -> None:
    """In whichever row, beside whichever others."""
    values, lse = partials(30, device)
    parts = [*range(3, 25)]
    with at_most(programs[0]):
        alone, alone_lse = merge([[28, 29], parts], values, lse)
    with at_most(programs[1]):
        out, merged = merge([parts, [-1], [1, 2], parts, [], [*range(30)]], values, lse, rows=8)
    for row in (0, 3):
        assert torch.equal(out[row], alone[1])
        assert torch.equal(merged[row], alone_lse[1])


def test_empty_parts_weigh_nothing(device: torch.device) -> None:
    values, lse = partials(4, device)
    lse[1] = lse[3] = -float("inf")
    out = check([[0, 1, 2], [1, 0, 3], [3, 1]], values, lse)
    torch.testing.assert_close(out[1], values[0])
    assert (out[2] == 0).all()


def test_heads_are_merged_independently(device: torch.device) -> None:
    values, lse = partials(2, device)
    lse[0, 0] = lse[1, 1] = lse[0, 2] = lse[1, 2] = -float("inf")
    check([[0, 1]], values, lse)


def test_a_row_without_parts_becomes_zero(device: torch.device) -> None:
    values, lse = partials(2, device)
    out, merged = merge([[], [0, 1], []], values, lse)
    assert (out[[0, 2]] == 0).all()
    assert (merged[[0, 2]] == -float("inf")).all()


def test_a_row_that_pac_has_written_is_left_alone(device: torch.device) -> None:
    values, lse = partials(2, device)
    out, merged = merge([[-1], [0, 1]], values, lse)
    assert out[0].isnan().all()
    assert merged[0].isnan().all()
    assert out[1].isfinite().all()


def test_partials_that_no_row_lists_do_not_matter(device: torch.device) -> None:
    values, lse = partials(4, device)
    values[1] = lse[1] = float("nan")
    check([[0, 2], [3]], values, lse)


@pytest.mark.parametrize("shift", [-20000.0, 20000.0])
def test_large_lse_do_not_overflow(shift: float, device: torch.device) -> None:
    values, lse = partials(3, device)
    plain, _ = merge([[0, 1, 2]], values, lse.round())
    shifted, merged = merge([[0, 1, 2]], values, lse.round() + shift)
    torch.testing.assert_close(shifted, plain)
    assert merged.isfinite().all()


def test_the_order_of_the_parts_hardly_matters(device: torch.device) -> None:
    values, lse = partials(5, device)
    out, merged = merge([list(p) for p in itertools.permutations(range(5), 5)][::17], values, lse)
    torch.testing.assert_close(out, out[:1].expand_as(out), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(merged, merged[:1].expand_as(merged))


def test_merging_in_two_steps_is_merging_in_one(device: torch.device) -> None:
    values, lse = partials(6, device)
    once, _ = merge([[0, 1, 2, 3, 4, 5]], values, lse)
    halves = merge([[0, 1, 2], [3, 4, 5]], values, lse)
    twice, _ = merge([[0, 1]], *halves)
    torch.testing.assert_close(twice, once, rtol=1e-5, atol=1e-6)


def test_the_lse_may_be_left_out(device: torch.device) -> None:
    values, lse = partials(2, device)
    with_lse, _ = merge([[0, 1]], values, lse)
    before = lse.clone()
    without, merged = merge([[0, 1]], values, lse, with_lse=False)
    assert torch.equal(with_lse, without)
    assert merged.isnan().all()
    assert torch.equal(lse, before)


def test_the_output_may_be_strided_and_of_another_dtype(device: torch.device) -> None:
    values, lse = partials(2, device)
    wide = torch.full((1, HEADS + 2, 2 * HEAD_DIM), float("nan"), device=device)
    out = wide.to(torch.float16)[:, :HEADS, :HEAD_DIM]
    por(out, None, values, lse, packed([[0, 1]], 3, device), merges_offset=3)
    expected, _ = exact([[0, 1]], values, lse)
    torch.testing.assert_close(out.double(), expected, rtol=1e-3, atol=1e-3)
