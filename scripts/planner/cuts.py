"""Ways to cut query tiles into tasks and to hand the tasks to program slots, for the ablation."""

from __future__ import annotations

from sglang_codec.planning.inputs import Cut

# None is the planner's own
CUTS: dict[str, Cut | None] = {
    "planner": None,
    "division, longest first": Cut("division", in_turn=False),
    "division, round robin": Cut("division"),
    "pages of 64, round robin": Cut("pages", 64),
    "pages of 256, round robin": Cut("pages", 256),
    "8 splits each": Cut("splits", 8),
    "splits that fill the slots": Cut("splits"),
}
