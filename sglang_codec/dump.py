"""Write the current forest, plan and totals to a JSON file, for people and for `explain`."""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglang_codec.batch_planner import BatchPlanner
from sglang_codec.patches.fallbacks import FALLBACKS

logger = logging.getLogger(__name__)

NOT_WRITTEN = "a dump that could not be written"
_SECONDS_BETWEEN_WRITES = 0.5
_SECONDS_AFTER_A_FAILURE = 10.0


class PlanDump:
    """The file behind SGLANG_CODEC_DUMP; replaced atomically, so a reader never sees half of it.

    A dump that fails costs the dump only: it is counted, logged once, and tried again later.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self._next = 0.0
        self._failed = False
        self._most_shared: tuple[int, dict[str, Any]] | None = None

    def write(self, planner: BatchPlanner, fallbacks: Mapping[str, int], *, changed: bool) -> None:
        """Write if the plan changed or some time has passed.

        The file keeps the plan that saved the most tokens beside the latest totals: at the end of a
        run the last plan is that of a nearly empty batch.
        """
        now = time.monotonic()
        if now < self._next and (self._failed or not changed):
            return
        try:
            _replace(self.path, json.dumps(self._record(planner, fallbacks, changed=changed)))
            self._failed = False
        except Exception as error:
            self._failed = True
            _count(self.path, error)
        self._next = now + (_SECONDS_AFTER_A_FAILURE if self._failed else _SECONDS_BETWEEN_WRITES)

    def _record(
        self, planner: BatchPlanner, fallbacks: Mapping[str, int], *, changed: bool
    ) -> dict[str, Any]:
        made = planner.first
        saved = made.packed.kv_tokens_stock - made.packed.kv_tokens_read
        if changed and (self._most_shared is None or saved > self._most_shared[0]):
            parts = {"forest": made.forest.to_dict(), "plan": made.plan.to_dict()}
            self._most_shared = (saved, parts)
        return {
            **(self._most_shared[1] if self._most_shared else {}),
            "totals": {**planner.totals.to_dict(), "fallbacks": dict(fallbacks)},
        }


def path_of_rank(path: str, model_runner: Any) -> Path:
    """`path` for a server's first rank, ``plan.dp1.tp3.json`` for another rank's ``plan.json``.

    Every rank has a scheduler and plans of its own, and would otherwise replace the others' file.
    """
    from sglang.srt.runtime_context import get_parallel

    # some versions have the ranks on the runner
    ranks = getattr(model_runner, "ps", None) or get_parallel()
    names = ("dp", "pp", "tp")
    others = [f".{name}{rank}" for name in names if (rank := getattr(ranks, f"{name}_rank", 0))]
    file = Path(path)
    return file.with_name(f"{file.stem}{''.join(others)}{file.suffix}")


def _replace(path: Path, text: str) -> None:
    """Make `text` the content of a regular file at `path`, in one step and through no link."""
    # a name that nobody can foresee, in the same folder: else it could not be moved in one step
    scratch = path.with_name(f".codec-{secrets.token_hex(8)}")
    handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # replaces a link, too, and not what it names
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def _count(path: Path, error: Exception) -> None:
    if NOT_WRITTEN not in FALLBACKS.counts:
        logger.warning(
            "codec: SGLANG_CODEC_DUMP=%s could not be written (%r); serving goes on, and it is "
            "tried again every %d s. Logged once, counted.",
            path,
            error,
            _SECONDS_AFTER_A_FAILURE,
        )
    FALLBACKS.counts[NOT_WRITTEN] += 1
