"""The cost model interpolates its table, inverts itself and refuses nonsense."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_codec.attention_shape import AttentionShape
from sglang_codec.planning.cost_model import COST_TABLES, CostModel, roofline_cost_model

SHAPE = AttentionShape.plain(32, 8, 128)
ROWS = np.array([16, 64])
TOKENS = np.array([0.0, 100.0, 1000.0])
US = np.array([[2.0, 3.0, 10.0], [4.0, 6.0, 30.0]])
TABLE = CostModel(ROWS, TOKENS, US, "hand-made")


def roofline(**changes: float) -> CostModel:
    values = {
        "num_ctas": 264,
        "bandwidth": 3e12,
        "flops": 8e14,
        "task_overhead_us": 2.0,
    }
    return roofline_cost_model(SHAPE, **{**values, **changes})


MODELS = (TABLE, roofline())


def test_grid_points_are_exact() -> None:
    for i, rows in enumerate(ROWS):
        np.testing.assert_allclose(TABLE.task_us(np.full(3, rows), TOKENS), US[i], rtol=1e-15)


def test_between_grid_points_it_is_linear_in_both_directions() -> None:
    assert TABLE.task_us(np.array([16]), np.array([50]))[0] == pytest.approx(2.5)
    assert TABLE.task_us(np.array([40]), np.array([100]))[0] == pytest.approx(4.5)
    assert TABLE.task_us(np.array([40]), np.array([550]))[0] == pytest.approx((6.5 + 18) / 2)


def test_beyond_the_table_it_goes_on_in_a_straight_line() -> None:
    assert TABLE.task_us(np.array([16]), np.array([1900]))[0] == pytest.approx(17.0)
    assert TABLE.most_tokens(np.array([16]), 17.0)[0] == pytest.approx(1900)


@given(st.sampled_from(MODELS), st.integers(1, 200), st.integers(0, 10**6), st.integers(1, 10**6))
def test_more_tokens_take_longer(model: CostModel, rows: int, tokens: int, more: int) -> None:
    shorter, longer = model.task_us(np.array([rows, rows]), np.array([tokens, tokens + more]))
    assert shorter < longer


@given(st.integers(1, 128), st.integers(0, 64), st.integers(0, 10**6))
def test_more_rows_are_never_faster(rows: int, more: int, tokens: int) -> None:
    few, many = roofline().task_us(np.array([rows, rows + more]), np.array([tokens, tokens]))
    assert few <= many


@given(st.sampled_from(MODELS), st.integers(1, 200), st.integers(0, 10**6))
def test_most_tokens_is_the_inverse(model: CostModel, rows: int, tokens: int) -> None:
    us = float(model.task_us(np.array([rows]), np.array([tokens]))[0])
    assert model.most_tokens(np.array([rows]), us)[0] == pytest.approx(tokens, rel=1e-6, abs=1e-6)


def test_no_token_count_fits_into_less_than_the_overhead() -> None:
    assert roofline(task_overhead_us=2.0).most_tokens(np.array([16, 64]), 1.0).max() < 0


def test_rows_and_tokens_are_matched_item_by_item() -> None:
    us = TABLE.task_us(np.array([64, 16, 64]), np.array([0, 100, 1000]))
    assert us.tolist() == [4.0, 3.0, 30.0]


def test_the_roofline_charges_bytes_for_few_rows_and_arithmetic_for_many() -> None:
    model = roofline(num_ctas=1, bandwidth=1e12, flops=1e14, task_overhead_us=0.0)
    few, many = model.task_us(np.array([16, 128]), np.array([4096, 4096]))
    assert few == pytest.approx(4096 * 2 * 128 * 2 / 1e12 * 1e6)
    assert many == pytest.approx(4096 * 4 * 128 * 128 / 1e14 * 1e6)


def test_every_cta_owns_its_share_of_the_machine() -> None:
    alone, shared = roofline(num_ctas=1), roofline(num_ctas=100)
    tokens = np.array([65536])
    ratio = (shared.task_us([16], tokens) - 2.0) / (alone.task_us([16], tokens) - 2.0)
    assert ratio[0] == pytest.approx(100)


@pytest.mark.parametrize(
    ("rows", "tokens", "us", "message"),
    [
        (ROWS, TOKENS, US[:1], r"us has shape \(1, 3\), expected \(2, 3\)"),
        (ROWS[:1], TOKENS[:1], US[:1, :1], "at least two token columns"),
        (ROWS, TOKENS, US[:, ::-1], "must increase with tokens"),
        (ROWS, TOKENS, np.ones_like(US), "must increase with tokens"),
        (ROWS, TOKENS[::-1], US, "must increase with tokens"),
        (ROWS, TOKENS + 1, US, "from 0 tokens on"),
        (ROWS[::-1], TOKENS, US, "increasing rows"),
        (ROWS[:0], TOKENS, US[:0], "at least one row"),
        (ROWS, TOKENS, np.where(US == 30, np.nan, US), "us holds nan; every value must be finite"),
        (ROWS, TOKENS, np.where(US == 30, np.inf, US), "us holds inf"),
        (ROWS, TOKENS, np.where(US == 2, -1.0, US), "us holds -1.0"),
        (ROWS, np.where(TOKENS == 1000, np.nan, TOKENS), US, "tokens holds nan"),
        (np.array([16, np.nan]), TOKENS, US, "rows holds nan"),
    ],
)
def test_a_bad_table_is_refused(
    rows: np.ndarray, tokens: np.ndarray, us: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        CostModel(rows, tokens, us, "broken")


def test_a_table_is_read_from_json(tmp_path: Path) -> None:
    path = tmp_path / "some_gpu_d128.json"
    table = {"rows": ROWS.tolist(), "tokens": TOKENS.tolist(), "us": US.tolist()}
    tables = [{**table, "group": group, "us": (US * group).tolist()} for group in (1, 4, 16)]
    path.write_text(json.dumps({"tables": tables}))
    for group, nearest in ((1, 1), (3, 4), (5, 4), (7, 4), (9, 16), (64, 16)):
        model = CostModel.from_json(path, group)
        assert model.name == "some_gpu_d128"
        np.testing.assert_array_equal(model.us[:, 1:], nearest * US[:, 1:])


TABLE_TEXT = '{"tables": [{"group": %s, "rows": %s, "tokens": %s, "us": %s}]}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError: 'tables'"),
        ('{"tables": []}', "ValueError"),
        (TABLE_TEXT % ("NaN", "[16]", "[0, 1]", "[[1, 2]]"), r"groups \[nan\]"),
        (TABLE_TEXT % (0, "[16]", "[0, 1]", "[[1, 2]]"), "ValueError"),
        (TABLE_TEXT % (4, "16", "[0, 1]", "[[1, 2]]"), r"shape \(1, 2\)"),
        (TABLE_TEXT % (4, "[16]", "[0, 1]", "[1, 2]"), r"shape \(2,\)"),
        (TABLE_TEXT % (4, "[16]", "[]", "[[]]"), "two token columns"),
        (TABLE_TEXT % (4, "[16]", "[0, 1]", '[["fast", 2]]'), "fast"),
        (TABLE_TEXT % (4, "[16]", "[0, 1]", "[[1, 1]]"), "must increase"),
        (TABLE_TEXT % (4, "[16]", "[0, 1]", "[[1, NaN]]"), "holds nan"),
        (TABLE_TEXT % (4, "[16]", "[0, 1]", "[[1, Infinity]]"), "holds inf"),
        (TABLE_TEXT % (4, "[16]", "[0, 1]", "[[-1, 2]]"), "holds -1.0"),
    ],
)
def test_a_bad_file_is_refused_by_name(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as refused:
        CostModel.from_json(path, 4)
    assert str(path) in str(refused.value)


def test_a_task_of_few_tokens_costs_almost_what_a_step_does(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    us = [[0.1, 3.0, 6.0], [5.0, 5.5, 6.5]]
    table = {"group": 4, "rows": [64, 128], "tokens": [0, 64, 128], "us": us}
    path.write_text(json.dumps({"tables": [table]}))
    model = CostModel.from_json(path, 4)
    few = model.task_us(np.array([64, 128]), np.array([1, 1]))
    assert (few >= 0.9 * model.us[:, 1]).all()
    assert (few < model.us[:, 1]).all()
    assert model.us[1, 0] == pytest.approx(5.0)  # what was measured, where it is more


@pytest.mark.parametrize("path", sorted(COST_TABLES.glob("*.json")), ids=lambda path: path.stem)
def test_every_table_that_we_ship_can_be_used(path: Path) -> None:
    model = CostModel.from_json(path, 4)
    assert model.tokens[0] == 0
    assert (np.diff(model.rows) > 0).all()
    assert (model.us > 0).all()
