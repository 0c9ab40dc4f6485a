"""The SGLang versions at hand, and programs run on one of them in their own process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SUPPORT = REPOSITORY / "tests" / "support"

INSTALLED = version("sglang")
# made by scripts/environment/install_sglang_overlays.sh
OVERLAYS = {
    folder.name: folder
    for folder in sorted((REPOSITORY / ".sglang").glob("*"))
    if (folder / ".complete").exists() and folder.name != INSTALLED
}
VERSIONS = (INSTALLED, *OVERLAYS)


def run_python(
    *arguments: str | Path, sglang: str = INSTALLED, paths: tuple[Path, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` with this checkout, the given SGLang and an otherwise neutral setting."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=neutral_environment(sglang, *paths) | variables,
        # not the checkout: what is found there must be found through the path above
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def neutral_environment(sglang: str, *paths: Path) -> dict[str, str]:
    """This checkout and the given SGLang, after `paths`, and none of the caller's settings."""
    search = [*paths, REPOSITORY, SUPPORT]
    if sglang != INSTALLED:
        search.insert(0, OVERLAYS[sglang])
    # nor is an SGLang compiled again for every program
    ours = {name for name in os.environ if "SGLANG" in name} | {"PYTHONDONTWRITEBYTECODE"}
    env = {name: value for name, value in os.environ.items() if name not in ours}
    return env | {
        "PYTHONPATH": os.pathsep.join(map(str, search)),
        "TRITON_INTERPRET": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
