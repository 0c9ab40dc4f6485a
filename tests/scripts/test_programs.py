"""Every script explains itself, and refuses words that it does not know."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
FOLDERS = ("serve", "kernels", "planner", "checks")
PROGRAMS = sorted(
    path
    for folder in FOLDERS
    for path in (SCRIPTS / folder).glob("*.py")
    if "__main__" in path.read_text()
)
# its kernels are compiled, and this process may interpret Triton
IN_PROCESS = [path for path in PROGRAMS if path.stem != "compile_kernels"]


def ended(program: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    """The exit status of a program that only reads its command line."""
    monkeypatch.setattr(sys, "argv", [str(program), *words])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(program), run_name="__main__")
    return exit_.value.code


@pytest.fixture(autouse=True)
def _process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a program changes of its process before it reads its command line."""
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(type(sys.stdout), "reconfigure", lambda *_, **__: None, raising=False)


@pytest.mark.parametrize("program", IN_PROCESS, ids=lambda path: path.stem)
def test_help_is_what_the_file_says(
    program: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(program, monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage:")
    # the docstring as it stands, with a line to copy that names this file
    assert f"python scripts/{program.parent.name}/{program.name}" in shown


@pytest.mark.parametrize("program", IN_PROCESS, ids=lambda path: path.stem)
def test_an_unknown_option_is_named(
    program: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(program, monkeypatch, "--no-such-option") == 2
    assert "error:" in capsys.readouterr().err


FROM_ANYWHERE = ("get_smollm2", "compile_kernels", "bench_planner", "support_table")


@pytest.mark.parametrize("name", FROM_ANYWHERE)
def test_a_script_finds_the_library_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of each folder, in a process of its own."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    (program,) = (path for path in PROGRAMS if path.stem == name)
    command = [sys.executable, str(program), "--help"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    assert done.stdout.startswith(b"usage:")


def test_the_page_names_every_script() -> None:
    page = (SCRIPTS / "README.md").read_text()
    assert [path.name for path in PROGRAMS if f"`{path.name}`" not in page] == []
