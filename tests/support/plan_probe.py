"""Plan random batches and print what came of them as JSON:

python plan_probe.py BATCHES
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys

import numpy as np
from plan_specs import SPEC, cost_model
from random_paths import paths_of

from sglang_codec.planning import entries
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.inputs import Cut
from sglang_codec.planning.plan import PlanCapacity, PlanCapacityError, PlanLayout
from sglang_codec.planning.planner import Planner

CUTS = (None, None, None, Cut("division"), Cut("pages", 64), Cut("splits"))


def main(batches: str) -> None:
    digest, planned, refused = hashlib.sha256(), 0, 0
    for seed in range(int(batches)):
        rng = np.random.default_rng(seed)
        paths, lengths = paths_of(
            [(int(rng.integers(99)), int(rng.choice((1, 5, 300, 9000)))) for _ in range(seed % 13)],
            [
                (int(rng.integers(99)), int(rng.choice((-30, -1, 0, 1, 40, 900))))
                for _ in range(seed % 40)
            ],
        )
        spec = dataclasses.replace(
            SPEC,
            row_tiles=((16,), (16, 64), (16, 32, 64))[seed % 3],
            bundle_rows=(0, 32, 64)[rng.integers(3)],
            tail_headroom=(0, 40)[seed % 2],
        )
        most = (400, 100_000)[rng.integers(2)]
        capacity = PlanCapacity(40, most, most, 20 * most)
        planner = Planner(spec, cost_model(spec), capacity, CUTS[seed % len(CUTS)])
        layout = PlanLayout.of(capacity, spec)
        packed = np.zeros(layout.size, np.int32)
        try:
            planner.pack_paths(paths, lengths, layout, packed)
            plan = planner.make_plan(PrefixForest.from_radix_paths(paths, lengths))
        except PlanCapacityError as error:
            refused += 1
            digest.update(str(error).encode())
            continue
        planned += 1
        digest.update(packed.tobytes())
        digest.update(json.dumps(plan.to_dict()).encode())
    ways = sorted({type(entry.call).__name__ for entry in entries.ENTRIES})
    report = {"digest": digest.hexdigest(), "planned": planned, "refused": refused, "ways": ways}
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
