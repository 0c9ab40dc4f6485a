"""Programs of the CUDA toolkit, wherever its installers put them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from glob import glob


def find(name: str, given: str | None, places: Iterable[str]) -> str | None:
    """The path of a program: the given one, or on PATH, or the newest in a place (a pattern)."""
    found = [path for place in places for path in sorted(glob(place), reverse=True)]
    return next(filter(None, map(shutil.which, [given] if given else [name, *found])), None)
