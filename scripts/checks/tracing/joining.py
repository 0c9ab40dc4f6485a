"""Requests that join and leave while others decode, under SGLang's own profiler."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

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
        limit_s: for the server to write the profile.
    """

    tree: Workload
    steps: int
    joins: int
    gpu: bool
    limit_s: float


class Decoding:
    """The requests that decode throughout, in another thread, and how far they are."""

    def __init__(self, client: ServerClient, requests: list[Request], pool: ThreadPoolExecutor):
        self._tokens = 0
        self.future: Future = pool.submit(client.generate, requests, Sampling(), self._add)

    def _add(self, tokens: int) -> None:
        self._tokens += tokens

    def wait_for(self, tokens: int, limit_s: float) -> None:
        """Return when that many have come.

        Raises:
            GenerationError: if generation failed or it took too long.
        """
        deadline = time.monotonic() + limit_s
        while self._tokens < tokens:
            if self.future.done():
                self.future.result()
            if time.monotonic() > deadline:
                raise GenerationError(f"only {self._tokens} of {tokens} tokens in {limit_s:.0f} s")
            time.sleep(0.001)


def record(client: ServerClient, recording: Recording, vocabulary: int, folder: Path) -> Path:
    """Profile a decoding batch that others join and leave; the file that the server wrote."""
    levels = prompts(recording.tree, vocabulary, seed=0)
    for batch in warm_ups(recording.tree, levels):
        client.generate(batch, Sampling())
    batch, before = recording.tree.batch, set(folder.glob("*.json.gz"))
    options = {"output_dir": str(folder.absolute()), "num_steps": recording.steps}
    options |= {"activities": ["CPU", "GPU"] if recording.gpu else ["CPU"]}
    with ThreadPoolExecutor(1 + recording.joins) as pool:
        decoding = Decoding(client, requests_of(recording.tree, levels), pool)
        decoding.wait_for(batch * SETTLING_STEPS, recording.limit_s)
        client.post("/start_profile", options | {"with_stack": False, "record_shapes": False})
        others = []
        for number, request in enumerate(_joining(recording, levels[-1], vocabulary), start=1):
            # spread over the profile, the last with time to leave again
            step = SETTLING_STEPS + number * recording.steps // (recording.joins + 2)
            decoding.wait_for(batch * step, recording.limit_s)
            others.append(pool.submit(client.generate, [request], Sampling()))
        for future in (decoding.future, *others):
            future.result()
    return _written(folder, before, recording.limit_s)


def needed_tokens(steps: int, flags: Sequence[str]) -> int:
    """What the decoding requests of a server with `flags` generate, to outlast the profile."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--speculative-num-draft-tokens", type=int, default=1, dest="most")
    return SETTLING_STEPS + MARGIN * steps * parser.parse_known_args(flags)[0].most


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
