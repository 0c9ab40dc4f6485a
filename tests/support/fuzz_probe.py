"""Plans batch after batch, each drawn from its own seed, and lets the checker judge every plan.

    python tests/support/fuzz_probe.py --plans 2000 --seed 0

Prints what was met, as JSON. Ends with 1 if a plan was wrong, or if none was made where one must
be; the report names the seed, and ``--seed SEED --plans 1`` shows it again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from packed_view import PackedView
from plan_checker import check_packed
from random_batches import RandomBatch, Rng, random_batch
from token_rows import TokenRows

from sglang_codec.planning.capacity import FANS, capacity_for, rows_ranges
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.frugal import frugal_plan
from sglang_codec.planning.packed import PackedPlan, pack
from sglang_codec.planning.paths import RadixPaths
from sglang_codec.planning.plain import plain_plan
from sglang_codec.planning.plan import Plan, PlanCapacity, PlanCapacityError, PlanLayout
from sglang_codec.planning.planner import Planner

MOST_FAULTS = 20  # after which a run ends
BUFFERS = ("proven", "least", "exact", "tight")
# a size of tight buffers -> how often it is smaller than that of a plan
SHRUNK = {"tasks": 0.5, "parts": 0.5, "kv_index": 0.1, "bundle_index": 0.3}
_POISON = np.random.default_rng(0).integers(-(2**31), 2**31, 1 << 22, dtype=np.int32)

Way = Callable[[PlanLayout, np.ndarray], PackedPlan]


class Fuzz:
    """One batch: its plans in several ways and buffers, each checked and counted."""

    def __init__(self, seed: int, counts: Counter[str]) -> None:
        self.rng: Rng = np.random.default_rng(seed)
        self.given: RandomBatch = random_batch(self.rng)
        self.buffers = str(self.rng.choice(BUFFERS))
        self.counts = counts

    def run(self) -> None:
        """Plan as a server does: with all sharing, else with less, else with none."""
        paths, lengths = self.given.paths, self.given.lengths
        rng, given = self.rng, self.given
        private = given.spec.shape.query_rows
        self.batch = TokenRows.of_paths(paths, lengths, private)
        self.private = TokenRows.of_paths(RadixPaths.private(len(lengths)), lengths, 1)
        self.window = given.spec.shape.seen_tokens
        self.forest = PrefixForest.from_radix_paths(
            paths, lengths, private_tokens=private, window=self.window
        )
        capacity = self._capacity()
        self.counts["batches"] += 1
        self.counts[f"tree: {given.tree}"] += 1
        self.counts["windows"] += self.window > 0
        self.counts["query rows"] += private > 1
        self.counts[f"buffers: {self.buffers}"] += 1
        self.counts["largest batch"] = max(self.counts["largest batch"], len(lengths))
        if not self._plan("all sharing", capacity, self._all_sharing):
            assert self.buffers != "exact", "a plan of this very size was made, and is refused"
            if not self._plan("less sharing", capacity, self._less_sharing):
                assert self.buffers == "tight", "no plan in buffers that are proven to hold one"
                self._plan("no sharing", capacity, self._no_sharing, self.private)
        elif rng.random() < 0.2:
            self._plan("less sharing", capacity, self._less_sharing)
            self._plan("no sharing", capacity, self._no_sharing, self.private)
        if rng.random() < 0.1:
            slots = rng.permutation(len(self.batch.position))[self.batch.names]
            self._plan("slots", capacity, partial(self._by_slots, slots))

    def _capacity(self) -> PlanCapacity:
        """Buffers as a server's, of the least sizes that are proven, of a plan's, or smaller."""
        rng, spec, rows = self.rng, self.given.spec, max(len(self.given.lengths), 1)
        unique = int(np.count_nonzero(np.bincount(self.batch.names)))
        if self.buffers == "least":
            fan = int(rng.choice(FANS))
            parts, once = rows_ranges(rows, fan), rows * (spec.tail_headroom + 6)
            bundles = int(rng.integers(unique + once))
            return PlanCapacity(rows, parts, parts, (fan - 1) * unique + once, bundles)
        proven = capacity_for(
            spec,
            rows=rows + int(rng.integers(3)),
            pool_slots=max(unique, 1) + int(rng.integers(99)),
        )
        if self.buffers == "proven":
            return proven
        try:
            plan = self._planner(proven).make_plan(self.forest)
        except PlanCapacityError:
            self.buffers = "proven"
            return proven
        self._plan("forest", proven, lambda *to: pack(self.forest, plan, *to))
        sizes = (plan.num_tasks, plan.num_parts, plan.kv_entries, plan.bundle_entries)
        exact = PlanCapacity(plan.batch, *sizes)
        if self.buffers == "exact":
            return exact
        smaller = {
            name: int(getattr(exact, name) * rng.random() ** 0.3)
            for name, often in SHRUNK.items()
            if rng.random() < often
        }
        if rng.random() < 0.5:  # with less sharing it may fit
            smaller["kv_index"] = proven.kv_index
        return dataclasses.replace(exact, **smaller)

    def _plan(
        self, way: str, capacity: PlanCapacity, pack_into: Way, batch: TokenRows | None = None
    ) -> bool:
        """Plan into buffers full of anything, and check the plan; whether there is one."""
        layout = PlanLayout.of(capacity, self.given.spec)
        out, given = self._poisoned(layout.size)
        try:
            made = pack_into(layout, out)
        except PlanCapacityError:
            assert np.array_equal(out, given), "a refused plan has been written"
            self.counts[f"refused: {way}"] += 1
            return False
        assert np.array_equal(out[made.used :], given[made.used :]), "written behind the plan"
        try:
            found = check_packed(out, layout, made, batch or self.batch, self.given.spec)
        except AssertionError as error:
            raise AssertionError(f"{way}: {error}") from error
        self.counts.update({"plans": 1, f"plans: {way}": 1})
        self.counts.update({f"plans with {what}": 1 for what, n in found.items() if n})
        if self.rng.random() < 0.1:
            again, _ = self._poisoned(layout.size)
            once_more = pack_into(layout, again)
            plans = PackedView.of(out, layout, made), PackedView.of(again, layout, once_more)
            assert plans[0].equals(plans[1]), f"{way}: what was in the buffer before it matters"
        return True

    def _poisoned(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        begin = int(self.rng.integers(len(_POISON) - size))
        given = _POISON[begin : begin + size]
        return given.copy(), given

    def _all_sharing(self, layout: PlanLayout, out: np.ndarray) -> PackedPlan:
        planner = self._planner(layout.capacity)
        return planner.pack_paths(self.given.paths, self.given.lengths, layout, out)

    def _less_sharing(self, layout: PlanLayout, out: np.ndarray) -> PackedPlan:
        return pack(self.forest, self._frugal(self.forest, layout), layout, out)

    def _no_sharing(self, layout: PlanLayout, out: np.ndarray) -> PackedPlan:
        return pack(None, plain_plan(self.given.lengths, self.given.spec), layout, out)

    def _by_slots(self, slots: np.ndarray, layout: PlanLayout, out: np.ndarray) -> PackedPlan:
        indptr = np.append(0, np.cumsum(self.batch.lengths))
        forest = PrefixForest.from_kv_indices(indptr, slots)
        query_rows = self.given.spec.shape.query_rows
        forest = forest.through_window(self.window, query_rows=query_rows)
        try:
            plan = self._planner(layout.capacity).make_plan(forest)
        except PlanCapacityError:
            plan = self._frugal(forest, layout)
        return pack(forest, plan, layout, out)

    def _planner(self, capacity: PlanCapacity) -> Any:
        return Planner(self.given.spec, self.given.costs, capacity)

    def _frugal(self, forest: PrefixForest, layout: PlanLayout) -> Plan:
        return frugal_plan(forest, self.given.spec, self.given.costs, layout.capacity)


def fuzz(plans: int, seed: int) -> dict[str, Any]:
    """Counts of what was met in at least so many plans, and the faults: ``seed ...: what``."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    start = time.perf_counter()
    while counts["plans"] < plans and len(faults) < MOST_FAULTS:
        try:
            one = Fuzz(seed, counts)
            one.run()
        except Exception as error:
            given = one.given
            where = f"seed {seed}: {given.tree}, {len(given.lengths)} rows, {one.buffers} buffers"
            faults.append(f"{where}: {type(error).__name__}: {error}")
        seed += 1
    seconds = round(time.perf_counter() - start, 1)
    numba = sys.modules.get("numba")  # where the planner is compiled
    return {
        "seconds": seconds,
        "index_checks": bool(numba and numba.config.BOUNDSCHECK),
        "counts": dict(sorted(counts.items())),
        "faults": faults,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report, or write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plans", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the first batch")
    args = parser.parse_args(argv)
    report = fuzz(args.plans, args.seed)
    print(json.dumps(report, indent=1))
    return int(bool(report["faults"]))


if __name__ == "__main__":
    sys.exit(main())
