"""POR on its own: the exact merge of partial results."""

from __future__ import annotations

import itertools

import pytest
import torch

from sglang_codec.kernels import por as por_module
from sglang_codec.kernels.por import por
from sglang_codec.testing import assert_lse_close

HEADS, HEAD_DIM = 3, 64


def packed(lists: list[list[int]], offset: int, device: torch.device) -> torch.Tensor:
    """A packed plan of which POR sees only the part lists: `lists[r]` are the parts of row r."""
    size = offset + len(lists) + 1
    bounds = [size, *(size + total for total in itertools.accumulate(map(len, lists)))]
    plan = [7] * offset + bounds + [part for parts in lists for part in parts] + [0]
    return torch.tensor(plan, dtype=torch.int32, device=device)


def partials(count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.randn(count, HEADS, HEAD_DIM, device=device),
        torch.randn(count, HEADS, device=device) * 8,
    )


def merge(
    lists: list[list[int]], values: torch.Tensor, lse: torch.Tensor, *, with_lse: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    device = values.device
    out = torch.full((len(lists), HEADS, HEAD_DIM), float("nan"), device=device)
    merged = torch.full((len(lists), HEADS), float("nan"), device=device)
    plan = packed(lists, 5, device)
    por(out, merged if with_lse else None, values, lse, plan, part_indptr_offset=5)
    return out, merged


def exact(
    lists: list[list[int]], values: torch.Tensor, lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The merge in fp64, by its definition."""
    out = torch.zeros(len(lists), HEADS, HEAD_DIM, dtype=torch.float64, device=values.device)
    merged = torch.full((len(lists), HEADS), -float("inf"), dtype=torch.float64).to(values.device)
    for row, parts in enumerate(lists):
        if parts:
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


@pytest.mark.parametrize("few", [0, 1 << 20], ids=["large batch", "small batch"])
def test_both_launch_shapes(
    few: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(por_module, "_FEW_PAIRS", few)
    values, lse = partials(9, device)
    lse[4] = -float("inf")
    check([[0, 1, 2, 3, 4], [], [5, 6], [4], [7, 8, 4]], values, lse)


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
    por(out, None, values, lse, packed([[0, 1]], 3, device), part_indptr_offset=3)
    expected, _ = exact([[0, 1]], values, lse)
    torch.testing.assert_close(out.double(), expected, rtol=1e-3, atol=1e-3)
