"""`python -m sglang.bench_serving`, also where the package `datasets` is not installed.

SGLang's benchmark imports it for a data set of pictures that is not used here, and stops without.
Run as a program: `python scripts/library/servers/sglang_benchmark.py OPTIONS`.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import runpy
import sys
import types


def main() -> None:
    """Run SGLang's benchmark with this program's arguments."""
    # this folder: its files must not be found in place of other packages
    del sys.path[0]
    stand_in_for_datasets()
    runpy.run_module("sglang.bench_serving", run_name="__main__", alter_sys=True)


def stand_in_for_datasets() -> None:
    """Let SGLang's benchmark be imported where the package is missing."""
    if importlib.util.find_spec("datasets") is None:
        stand_in = types.ModuleType("datasets")
        stand_in.__spec__ = importlib.machinery.ModuleSpec("datasets", loader=None)
        stand_in.load_dataset = None
        sys.modules["datasets"] = stand_in


if __name__ == "__main__":
    main()
