"""Predicted microseconds of one task on one program slot, from a table."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sglang_codec.attention_shape import AttentionShape

COST_TABLES = Path(__file__).parent / "cost_tables"
_ROW_GRID = (16, 32, 64, 128)
_SHORT_TASK = 1024  # tokens up to which a task's line is drawn
_FAR = 2.0**31  # tokens
_FEW_TOKENS = 0.9  # of a step's time; below 1, as tables increase
_TOKEN_GRID = (0, 64, 256, 1024, 4096, 16384, 65536, 131072)


@dataclass(frozen=True)
class CostModel:
    """Bilinear interpolation in a table of task times; beyond the table it goes on linearly.

    A task is the attention of one query tile over one chunk of KV tokens for one KV head, timed
    while every other slot of the GPU is as busy, so that bandwidth is shared as in a real plan.

    Args:
        rows: ``[R]`` increasing M sizes of the query tile (requests x GQA group, padded).
        tokens: ``[T]`` increasing KV lengths, the first 0.
        us: ``[R, T]`` microseconds, increasing along tokens.
        name: where the table comes from.
    """

    rows: np.ndarray
    tokens: np.ndarray
    us: np.ndarray
    name: str
    _curves: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        expected = (*self.rows.shape, *self.tokens.shape)
        if self.us.shape != expected or len(expected) != 2 or not expected[0] or expected[1] < 2:
            raise ValueError(
                f"cost table {self.name!r}: us has shape {self.us.shape}, expected {expected} with "
                "at least one row and at least two token columns"
            )
        for what, values in (("rows", self.rows), ("tokens", self.tokens), ("us", self.us)):
            bad = values[~(np.isfinite(values) & (values >= 0))]
            if len(bad):
                raise ValueError(
                    f"cost table {self.name!r}: {what} holds {bad[0]}; every value must be finite "
                    "and 0 or more"
                )
        grows = np.diff(self.us, axis=1) > 0
        if not (grows.all() and (np.diff(self.tokens) > 0).all() and self.tokens[0] == 0):
            raise ValueError(
                f"cost table {self.name!r} must increase with tokens in every row, from 0 tokens on"
            )
        if not (np.diff(self.rows) > 0).all():
            raise ValueError(f"cost table {self.name!r} must have increasing rows")

    def curve(self, rows: int) -> np.ndarray:
        """us over `tokens` for a tile of `rows`, on straight lines through the table's tiles.

        A smaller tile than the table's smallest costs as much as that: it waits for memory.
        """
        if len(self.rows) == 1 or rows <= self.rows[0]:
            return self.us[0].copy()
        at = np.array([float(rows)])
        return np.array([_linear(at, self.rows, column)[0] for column in self.us.T])

    def long_curve(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """`tokens` and `curve(rows)` with one more point, as far out as any sequence can be."""
        if rows not in self._curves:
            far = np.array([self.tokens[-1] + _FAR])
            curve = self.curve(rows)
            beyond = _linear(far, self.tokens, curve)
            self._curves[rows] = (np.append(self.tokens, far), np.append(curve, beyond))
        return self._curves[rows]

    def line(self, rows: int) -> tuple[float, float]:
        """A task of `rows` as a straight line: microseconds before its first token, and a token."""
        tokens, us = self.long_curve(rows)
        at = int(np.searchsorted(tokens, _SHORT_TASK))
        return float(us[0]), float((us[at] - us[0]) / tokens[at])

    def task_us(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Microseconds of tasks with ``rows`` ``[K]`` and ``tokens`` ``[K]``."""
        rows, tokens = np.asarray(rows), np.asarray(tokens, np.float64)
        out = np.empty(np.broadcast_shapes(rows.shape, tokens.shape))
        for value in set(rows.ravel().tolist()):
            np.copyto(out, np.interp(tokens, *self.long_curve(value)), where=rows == value)
        return out

    def tokens_in(self, rows: np.ndarray, us: np.ndarray) -> np.ndarray:
        """Tokens ``[K]`` (float) of tasks that take ``us`` ``[K]``; 0 where that is too little."""
        out = np.empty(us.shape)
        for value in set(rows.tolist()):
            grid, curve = self.long_curve(value)
            np.copyto(out, np.interp(us, curve, grid), where=rows == value)
        return out

    def most_tokens(self, rows: np.ndarray, us: float) -> np.ndarray:
        """Largest token counts ``[K]`` (float) whose task takes at most `us`; below 0 if none."""
        rows = np.asarray(rows)
        out = np.empty(rows.shape)
        for value in set(rows.ravel().tolist()):
            out[rows == value] = _linear(np.array([us]), self.curve(value), self.tokens)[0]
        return out

    @classmethod
    def from_json(cls, path: Path, group: int) -> CostModel:
        """Read a file written by ``scripts/planner/profile_cost_model.py``.

        Args:
            group: query heads per KV head; the table of the nearest group is taken, in octaves.
        """
        try:
            tables = json.loads(path.read_text())["tables"]
            octaves = [abs(math.log2(table["group"] / group)) for table in tables]
            if not np.isfinite(octaves).all():
                raise ValueError(f"groups {[table['group'] for table in tables]}")
            table = tables[int(np.argmin(octaves))]
            rows, tokens, us = (np.asarray(table[n], np.float64) for n in ("rows", "tokens", "us"))
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise ValueError(
                f"cost table {path} cannot be read ({type(error).__name__}: {error}); write it "
                "with scripts/planner/profile_cost_model.py"
            ) from error
        try:
            model = cls(rows, tokens, us, path.stem)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        # a step is loaded and computed whole: a task of few tokens costs almost what one step does
        us[:, 0] = np.maximum(us[:, 0], _FEW_TOKENS * us[:, 1])
        return model


def roofline_cost_model(
    shape: AttentionShape,
    *,
    num_ctas: int,
    bandwidth: float,
    flops: float,
    task_overhead_us: float,
) -> CostModel:
    """A cost model from two ceilings, for a GPU without a measured table.

    One of `num_ctas` equally busy CTAs owns ``1 / num_ctas`` of both ceilings; a token costs
    ``max(kv_token_bytes / bandwidth, 2 M product_columns / flops)`` of its share.

    Args:
        bandwidth: bytes per second of device memory.
        flops: matrix floating-point operations per second in the KV dtype.
        task_overhead_us: time of a task before its first token.
    """
    rows, tokens = np.array(_ROW_GRID), np.array(_TOKEN_GRID, np.float64)
    products = 2 * rows * shape.product_columns
    seconds = np.maximum(shape.kv_token_bytes / bandwidth, products / flops)
    per_token = seconds * num_ctas * 1e6
    return CostModel(rows, tokens, task_overhead_us + per_token[:, None] * tokens, "roofline")


def _linear(x: np.ndarray, xp: np.ndarray, fp: np.ndarray) -> np.ndarray:
    """`np.interp` with straight-line extrapolation at both ends."""
    low = (fp[1] - fp[0]) / (xp[1] - xp[0])
    high = (fp[-1] - fp[-2]) / (xp[-1] - xp[-2])
    inside = np.interp(x, xp, fp)
    return np.where(
        x > xp[-1],
        fp[-1] + (x - xp[-1]) * high,
        np.where(x < xp[0], fp[0] + (x - xp[0]) * low, inside),
    )
