"""Write the current forest, plan and totals to a JSON file, for people and for `explain`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from sglang_codec.batch_planner import BatchPlanner

_SECONDS_BETWEEN_WRITES = 0.5


class PlanDump:
    """The file behind SGLANG_CODEC_DUMP; replaced atomically, so a reader never sees half of it."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._written = 0.0
        self._most_shared: tuple[int, dict] | None = None

    def write(self, planner: BatchPlanner, fallbacks: Mapping[str, int], *, changed: bool) -> None:
        """Write if the plan changed or some time has passed.

        The file keeps the plan that saved the most tokens beside the latest totals: at the end of a
        run the last plan is that of a nearly empty batch.
        """
        now = time.monotonic()
        if not changed and now - self._written < _SECONDS_BETWEEN_WRITES:
            return
        self._written = now
        packed = planner.packed
        saved = packed.kv_tokens_stock - packed.kv_tokens_read
        if changed and (self._most_shared is None or saved > self._most_shared[0]):
            parts = {"forest": planner.forest.to_dict(), "plan": planner.plan.to_dict()}
            self._most_shared = (saved, parts)
        record = {
            **(self._most_shared[1] if self._most_shared else {}),
            "totals": {**planner.totals.to_dict(), "fallbacks": dict(fallbacks)},
        }
        scratch = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        scratch.write_text(json.dumps(record))
        scratch.replace(self.path)
