"""What every result tells (machine, versions, commit, command), and how it is written as JSON."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DISTRIBUTIONS = {
    "sglang": ("sglang",),
    "sgl_kernel": ("sglang-kernel", "sgl-kernel"),
    "flashinfer": ("flashinfer-python",),
    "triton": ("triton",),
    "numpy": ("numpy",),
    "transformers": ("transformers",),
    "sglang_codec": ("sglang-codec",),
}


def versions() -> dict[str, str]:
    import torch

    found = {"python": platform.python_version(), "torch": torch.__version__}
    found["cuda"] = torch.version.cuda or "none"
    for name, distributions in DISTRIBUTIONS.items():
        for distribution in distributions:
            try:
                found.setdefault(name, importlib.metadata.version(distribution))
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def commit() -> str:
    """This checkout's commit, or `BENCH_COMMIT` where there is no git history."""
    if named := os.environ.get("BENCH_COMMIT"):
        return named
    here = Path(__file__).parent
    try:
        head = _git(here, "rev-parse", "HEAD")
        return f"{head}-dirty" if _git(here, "status", "--porcelain", "-uno") else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def command(words: Sequence[str] | None = None) -> str:
    """This program's command line, or with other words; of absolute paths only the names."""
    return shlex.join(without_paths([Path(sys.argv[0]).name, *(words or sys.argv[1:])]))


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before `--`, and a server's flags after it."""
    cut = words.index("--") if "--" in words else len(words)
    return list(words[:cut]), list(words[cut + 1 :])


def without_paths(words: Iterable[str]) -> list[str]:
    """Words with names in place of absolute paths, which is what repeats them."""
    return [_without_path(word) for word in words]


def _without_path(word: str) -> str:
    option, equals, value = word.partition("=")
    if equals and option.startswith("-"):
        return f"{option}={_without_path(value)}"
    return Path(word).name if word.startswith(("/", "~")) else word


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def gpu_name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def head(gpu: str, words: Sequence[str] | None = None) -> dict[str, Any]:
    """What the figures of this run depend on; `words` if not those of the command line."""
    return {"gpu": gpu, "versions": versions(), "commit": commit(), "command": command(words)}


def write(document: dict, path: Path) -> None:
    """Write a document so that a killed run leaves the last complete one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(plain(document), indent=1) + "\n")
    unfinished.replace(path)


@dataclass
class Report:
    """A document of rows, written after each of them."""

    gpu: str
    versions: dict[str, str]
    commit: str
    command: str
    ceilings: dict[str, float]
    rows: list[dict] = field(default_factory=list)
    skipped: list[dict] = field(default_factory=list)
    stopped: str = ""

    @classmethod
    def of(cls, device: torch.device, ceilings: dict[str, float]) -> Report:
        return cls(**head(gpu_name(device)), ceilings=ceilings)

    def write(self, path: Path) -> None:
        write(vars(self), path)


# what tells one row from another; what it says of its layers may be left out where it is usual
KEY = ("table", "name", "heads", "dtype", "slots")
OF_LAYERS = {"head_dim": 128, "value_dim": None, "window_left": -1, "sinks": False, "query_rows": 1}


def key(row: dict) -> tuple:
    layers = OF_LAYERS | {"value_dim": row.get("head_dim", OF_LAYERS["head_dim"])} | row
    return tuple(row.get(name) for name in KEY) + tuple(layers[name] for name in OF_LAYERS)


def load(paths: Iterable[Path]) -> tuple[dict, list[dict]]:
    """The last report's head, and the rows of all; a later report's row replaces an earlier one."""
    rows: dict[tuple, dict] = {}
    head: dict = {}
    for path in paths:
        head = json.loads(path.read_text())
        rows |= {key(row): row for row in head["rows"]}
    return head, list(rows.values())


def plain(value: object) -> object:
    """`value` as JSON can hold it: NumPy scalars and arrays unpacked, times and errors rounded."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, (str, bool)) or value is None:
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return str(value)


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = (f"| {' | '.join(cells)} |" for cells in (heads, *rows))
    return "\n".join([next(lines), "|---" * len(heads) + "|", *lines])
