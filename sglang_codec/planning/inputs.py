"""What the stages read as tables, from the types that the rest of the package knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sglang_codec.planning.cost_model import CostModel
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.plan import MOST_PIECES, PlanCapacity, PlanSpec
from sglang_codec.planning.tables import MACHINE, MOST_POINTS, MOST_TILES, NODE


@dataclass(frozen=True, slots=True)
class Cut:
    """How query tiles are cut and dealt out instead of the planner's own way, for comparisons.

    Args:
        into: chunks of the division alone, of `size` tokens each (`pages`), or `size` of each tile
            (`splits`; with 0 as many as fill the slots).
        in_turn: the chunks go to the slots in turn, else each to the one that is free first.
    """

    into: Literal["division", "pages", "splits"]
    size: int = 0
    in_turn: bool = True


def forest_arrays(forest: PrefixForest) -> tuple[np.ndarray, np.ndarray]:
    """`order` of a `Forest`, and its `nodes` as int64."""
    columns = [getattr(forest, name) for name in NODE.names]
    return forest.order.astype(np.int64), np.stack(columns, axis=1).astype(np.int64).ravel()


def machine_table(
    spec: PlanSpec, cost_model: CostModel, capacity: PlanCapacity, cut: Cut | None = None
) -> np.ndarray:
    """One `MACHINE`.

    Raises:
        ValueError: more query tiles or points of the cost model than are planned for.
    """
    classes = [*spec.row_tiles, *([spec.bundle_rows] if spec.bundle_rows else [])]
    curves = [cost_model.long_curve(rows) for rows in classes]
    points = len(curves[0][0])
    for what, number, most in (
        ("query tiles", len(spec.row_tiles), MOST_TILES),
        (f"points in cost table {cost_model.name!r}", points, MOST_POINTS),
    ):
        if number > most:
            raise ValueError(f"{number} {what}, at most {most} are planned for; leave some out")
    tokens, us = np.zeros((2, MOST_TILES + 1, MOST_POINTS))
    for kind, curve in enumerate(curves):
        tokens[kind, :points], us[kind, :points] = curve
    row_tiles = np.zeros(MOST_TILES, np.int64)
    row_tiles[: len(spec.row_tiles)] = spec.row_tiles
    machine = np.zeros(1, MACHINE)
    values = {
        "request_rows": spec.shape.request_rows,
        "query_rows": spec.shape.query_rows,
        "bundle_rows": spec.bundle_rows,
        "block_kv": spec.block_kv,
        "num_slots": spec.num_slots,
        "headroom": spec.tail_headroom,
        "num_tiles": len(spec.row_tiles),
        "points": points,
        "most_pieces": MOST_PIECES,
        "most_tasks": capacity.tasks,
        "most_parts": capacity.parts,
        "most_kv": capacity.kv_index,
        "most_bundle": capacity.bundle_index,
        "cut": ("", "division", "pages", "splits").index(cut.into) if cut else 0,
        "cut_size": cut.size if cut else 0,
        "in_turn": cut.in_turn if cut else False,
        "window": spec.shape.seen_tokens,
        "kv_token_bytes": spec.shape.kv_token_bytes,
        "partial_bytes": spec.shape.partial_bytes,
        "l2_tokens": spec.l2_tokens,
        "row_tiles": row_tiles,
        "tokens": tokens.ravel(),
        "us": us.ravel(),
    }
    for name, value in values.items():
        machine[name] = value
    return machine
