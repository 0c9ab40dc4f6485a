"""Requests that join and leave while others decode, under SGLang's own profiler."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.servers.clients import GenerationError, Request, Sampling, ServerClient
from library.servers.workload import Workload, prompts, requests_of, warm_ups

from tracing.chrome_trace import read_profile

SETTLING_STEPS = 8
JOINING_TOKENS = 6  # what a joining request generates before it leaves
MARGIN = 3  # the decoding requests outlast the profile by so much
POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Recording:
    """What to record.

    Args:
        tree: the requests that decode throughout.
        steps: forward passes in the profile.
        joins: requests that join one after the other, and leave again.
        stack: whether Python functions are recorded too, which slows the host down.
        limit_s: for the server to write the profile.
    """

    tree: Workload
    steps: int
    joins: int
    stack: bool
    gpu: bool
    limit_s: float


class Progress:
    """Counts tokens of the decoding requests, and lets another thread wait for a count."""

    def __init__(self) -> None:
        self._tokens = 0
        self._failed: Exception | None = None
        self._changed = threading.Condition()

    def add(self, tokens: int) -> None:
        with self._changed:
            self._tokens += tokens
            self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        with self._changed:
            self._failed = error
            self._changed.notify_all()

    def wait_for(self, tokens: int, limit_s: float) -> None:
        """Return when that many have come.

        Raises:
            GenerationError: if generation failed or it took too long.
        """
        with self._changed:
            reached = self._changed.wait_for(
                lambda: self._tokens >= tokens or self._failed is not None, limit_s
            )
        if self._failed is not None:
            raise GenerationError(f"the decoding requests failed: {self._failed}")
        if not reached:
            raise GenerationError(f"only {self._tokens} of {tokens} tokens in {limit_s:.0f} s")


def record(client: ServerClient, recording: Recording, vocabulary: int, folder: Path) -> Path:
    """Profile a decoding batch that others join and leave; the file that the server wrote."""
    levels = prompts(recording.tree, vocabulary, seed=0)
    for batch in warm_ups(recording.tree, levels):
        client.generate(batch, Sampling())
    requests = requests_of(recording.tree, levels)
    progress, batch = Progress(), recording.tree.batch
    before = set(folder.glob("*.json.gz"))
    decoding = _in_background(
        lambda: client.generate(requests, Sampling(), progress.add), progress.fail
    )
    progress.wait_for(batch * SETTLING_STEPS, recording.limit_s)
    client.post("/start_profile", _profile_options(recording, folder))
    others = []
    for number, request in enumerate(_joining(recording, levels[-1], vocabulary), start=1):
        # spread over the profile, the last with time to leave again
        step = SETTLING_STEPS + number * recording.steps // (recording.joins + 2)
        progress.wait_for(batch * step, recording.limit_s)
        others.append(
            _in_background(lambda r=request: client.generate([r], Sampling()), progress.fail)
        )
    for thread in (decoding, *others):
        thread.join()
    progress.wait_for(0, 0)
    return _written(folder, before, recording.limit_s)


def needed_steps(steps: int) -> int:
    """Tokens that the decoding requests generate, so that they outlast the profile."""
    return SETTLING_STEPS + MARGIN * steps


def _joining(
    recording: Recording, leaves: Sequence[tuple[int, ...]], vocabulary: int
) -> list[Request]:
    """Prompts that begin as one of the tree's and end otherwise."""
    length = max(1, len(leaves[0]) // 2)
    return [
        Request(
            f"join {number}",
            (*leaves[number % len(leaves)][:length], vocabulary - 1 - number),
            JOINING_TOKENS,
        )
        for number in range(recording.joins)
    ]


def _profile_options(recording: Recording, folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder.absolute()),
        "num_steps": recording.steps,
        "activities": ["CPU", "GPU"] if recording.gpu else ["CPU"],
        "with_stack": recording.stack,
        "record_shapes": False,
    }


def _in_background(
    call: Callable[[], object], failed: Callable[[Exception], None]
) -> threading.Thread:
    def run() -> None:
        try:
            call()
        except Exception as error:  # told to the thread that waits
            failed(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def _written(folder: Path, before: set[Path], limit_s: float) -> Path:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        new = sorted(set(folder.glob("*.json.gz")) - before)
        if new and _is_complete(new[0]):
            return new[0]
        time.sleep(POLL_S)
    raise GenerationError(
        f"the server wrote no profile to {folder} in {limit_s:.0f} s: the requests ended before"
        " the profile, or it runs elsewhere"
    )


def _is_complete(path: Path) -> bool:
    try:
        read_profile(path)
    except (EOFError, OSError, ValueError):
        return False
    return True
