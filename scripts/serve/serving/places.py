"""Where servers run side by side: each on GPUs of its own, and on an equal share of the cores."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ALL = "all"
TOPOLOGY = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class Place:
    """GPUs and cores of one server and its clients.

    Args:
        gpus: indices among those that this program sees; empty for all of them.
        cores: ids of the operating system.
    """

    gpus: tuple[int, ...]
    cores: frozenset[int]

    @property
    def name(self) -> str:
        return "+".join(map(str, self.gpus))

    def enter(self) -> None:
        """Confine this process, and those that it starts from here on."""
        os.sched_setaffinity(0, self.cores)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        # an empty one hides all of them, and goes on doing so
        if self.gpus and visible != "":
            names = visible.split(",") if visible else None
            own = (names[gpu] if names else str(gpu) for gpu in self.gpus)
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own)


def parse_gpus(text: str) -> list[tuple[int, ...]]:
    """The type of an option: `0,1`, `0+1,2+3`, or `all`."""
    if text == ALL:
        import torch

        return [(gpu,) for gpu in range(max(1, torch.cuda.device_count()))]
    try:
        sets = [tuple(map(int, word.split("+"))) for word in text.split(",")]
    except ValueError:
        sets = []
    gpus = [gpu for own in sets for gpu in own]
    if not gpus or len(set(gpus)) < len(gpus) or min(gpus) < 0:
        raise argparse.ArgumentTypeError(
            f"{text!r}: name each GPU once, as in 0,1,2 (a server on each), 0+1,2+3 or {ALL}"
        )
    return sets


def places_of(gpus: Sequence[tuple[int, ...]] | None) -> list[Place]:
    """A place per set of GPUs; without any, one place that has the whole machine.

    Raises:
        ValueError: if there are fewer cores than places.
    """
    sets = list(gpus or [()])
    cores = sorted(os.sched_getaffinity(0), key=_position)
    if len(cores) < len(sets):
        raise ValueError(
            f"{len(sets)} servers side by side need a core each, this process may use {len(cores)}:"
            " name fewer GPUs"
        )
    share = len(cores) // len(sets)
    return [
        Place(own, frozenset(cores[first * share : (first + 1) * share]))
        for first, own in enumerate(sets)
    ]


def _position(core: int) -> tuple[int, int, int]:
    # neighbours in this order share a socket, and the threads of a core stay together
    return _topology(core, "physical_package_id"), _topology(core, "core_id"), core


def _topology(core: int, name: str) -> int:
    try:
        return int((TOPOLOGY / f"cpu{core}" / "topology" / name).read_text())
    except (OSError, ValueError):
        return 0
