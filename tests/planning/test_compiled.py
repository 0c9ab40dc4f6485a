"""The planner is compiled before it serves, from a cache that can be trusted, and works without."""

from __future__ import annotations

import functools
import json
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plan_specs
import pytest
import torch
from numba.core.dispatcher import Dispatcher

from sglang_codec.patches.fallbacks import FALLBACKS
from sglang_codec.plan_maker import PlanMaker
from sglang_codec.planning import compile_cache, entries, jit, planner
from sglang_codec.planning.compiled import Entry, compiled
from sglang_codec.planning.plan import PlanCapacity, PlanLayout

SUPPORT = Path(__file__).resolve().parents[1] / "support"
ROOT = SUPPORT.parents[1]


@compiled
def _doubled(value: int) -> int:
    return 2 * value


def _double_all(values: np.ndarray) -> int:
    for i in range(len(values)):
        values[i] = _doubled(values[i])
    return len(values)


jit._register(_doubled, True)


def small_entry() -> Entry:
    """An entry that compiles quickly."""
    return Entry(_double_all, (np.dtype(np.int64),))


def compile_small() -> bool:
    """Compile it; whether it came from the cache."""
    entry = small_entry()
    jit.compile_entries([entry])
    values = np.arange(4)
    assert entry(values) == 4
    assert values.tolist() == [0, 2, 4, 6]
    assert isinstance(entry.call, Dispatcher)
    return sum(entry.call.stats.cache_hits.values()) > 0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sglang_codec" / "planner"


def run_python(code: str, **environment: str) -> str:
    paths = os.pathsep.join((str(ROOT), str(SUPPORT)))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_compiles_nothing() -> None:
    code = "import sys, sglang_codec.planning.planner; print('numba' in sys.modules)"
    assert run_python(code).strip() == "False"


def test_nothing_is_compiled_while_serving() -> None:
    planner.make_ready()
    for entry in entries.ENTRIES:
        assert isinstance(entry.call, Dispatcher), "the planner does not compile"
        assert len(entry.call.signatures) == 1
    floats = [np.zeros(3)] * 4
    with pytest.raises(TypeError, match="No matching definition"):
        entries.build_forest(*floats, 1, 0)


@pytest.mark.parametrize(
    "values", [[1, 2], np.zeros(4), np.zeros((2, 2), np.int64), np.zeros(8, np.int64)[::2]]
)
def test_what_is_not_compiled_takes_nothing_else_either(values: object) -> None:
    entry = small_entry()
    assert entry(np.arange(4)) == 4
    with pytest.raises(TypeError, match="no array as compiled code takes it"):
        entry(values)


def test_what_was_compiled_is_loaded_again(folder: Path) -> None:
    assert not compile_small()
    assert compile_small()
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: b"\x80" + data,
    ],
    ids=["empty", "its begin", "half", "a bit", "longer"],
)
def test_a_damaged_file_is_compiled_again(
    damage: Callable[[bytes], bytes], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compile_small()
    (file,) = folder.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert not compile_small()
    assert "is damaged" in caplog.text
    assert compile_small()


def test_a_file_that_another_user_may_write_is_not_loaded(folder: Path) -> None:
    compile_small()
    (file,) = folder.iterdir()
    file.chmod(0o666)
    assert not compile_small()
    assert compile_small()  # replaced by one that is safe
    moved = file.rename(folder.parent / "elsewhere")
    file.symlink_to(moved)
    assert not compile_small()


def test_a_file_of_another_user_is_not_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_small()
    (file,) = folder.iterdir()
    of_file = file.stat().st_ino
    is_private = compile_cache._is_private
    monkeypatch.setattr(
        compile_cache, "_is_private", lambda found: found.st_ino != of_file and is_private(found)
    )
    assert not compile_small()


def make_shared(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o777)


def make_file(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.touch()


def make_link(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    (folder.parent / "real").mkdir(mode=0o700)
    folder.symlink_to(folder.parent / "real")


@pytest.mark.parametrize("make", [make_shared, make_file, make_link])
def test_without_a_safe_folder_it_is_compiled_in_memory(
    make: Callable[[Path], None], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(folder)
    with caplog.at_level(logging.WARNING):
        assert not compile_small()
        assert not compile_small()
    assert "there is no cache" in caplog.text
    assert folder.is_file() or not list(folder.iterdir())


def test_the_code_depends_on_every_source_and_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for source in compile_cache._SOURCES.glob("*.py"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    keys = [compile_cache._key()]
    monkeypatch.setattr(compile_cache, "_SOURCES", tmp_path)
    assert compile_cache._key() == keys[0]
    with (tmp_path / "tape.py").open("a") as file:
        file.write("# changed\n")
    keys.append(compile_cache._key())
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "0")
    keys.append(compile_cache._key())
    assert len(set(keys)) == len(keys)


def test_two_processes_may_compile_at_once(folder: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_compiled as t; t.compile_small()"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    paths = os.pathsep.join((str(ROOT), str(SUPPORT)))
    environment = {**os.environ, "PYTHONPATH": paths}
    running = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert len(list(folder.iterdir())) == 1


def test_a_planner_that_cannot_be_compiled_plans_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(planner, "_make_ready", functools.cache(planner._make_ready.__wrapped__))
    monkeypatch.setattr(jit, "compile_entries", fail)
    for entry in entries.ENTRIES:
        monkeypatch.setattr(entry, "call", entry.function)
    spec, counts = plan_specs.SPEC, FALLBACKS.counts.copy()
    layout = PlanLayout.of(PlanCapacity(9, 900, 900, 9000), spec)
    made = [
        PlanMaker(
            spec,
            plan_specs.cost_model(spec),
            layout,
            lambda: torch.zeros(layout.size, dtype=torch.int32),
            lambda *_: [],
        ).make(None, np.array([7, 300], np.int32), None)
        for _ in range(2)
    ]
    assert made[0].packed.kv_tokens_read == 307
    (record,) = (r for r in caplog.records if "plans slowly" in r.getMessage())
    assert "RuntimeError: injected" in record.getMessage()
    assert FALLBACKS.counts["the planner is not compiled"] > counts.get(
        "the planner is not compiled", 0
    )


def test_compiled_checked_and_uncompiled_plans_are_the_same() -> None:
    """Bounds are checked in one of three ways, and Python runs the stages in another."""
    code = "import plan_probe; plan_probe.main('120')"
    ways = ({}, {"NUMBA_BOUNDSCHECK": "1"}, {"NUMBA_DISABLE_JIT": "1"})
    reports = [json.loads(run_python(code, **way)) for way in ways]
    assert [report.pop("ways") for report in reports] == [
        ["CPUDispatcher"],
        ["CPUDispatcher"],
        ["function"],
    ]
    assert reports[0] == reports[1] == reports[2]
    assert reports[0]["planned"] > 60
    assert reports[0]["refused"] > 3
