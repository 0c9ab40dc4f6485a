"""Programs on the SGLang of a version, which is imported once: importing it takes most of a start.

A process of each version imports it and waits; each program runs in a fork of it, so what SGLang
keeps per process never reaches the next program. Variables that SGLang may read while it is
imported need `run_python`.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from sglang_versions import INSTALLED, SUPPORT, neutral_environment

LIMIT_S = 600


def run_warm(
    program: Path, *arguments: str, sglang: str = INSTALLED, **variables: str
) -> subprocess.CompletedProcess[str]:
    """As `run_python`, for a program in a file and variables of codec."""
    foreign = [name for name in variables if not name.startswith("SGLANG_CODEC_")]
    assert not foreign, f"SGLang may have read {foreign} when it was imported; use run_python"
    return _importer(sglang).run([str(program), *arguments], variables)


def run_probe(
    name: str, folder: Path, *arguments: str, **more: str
) -> tuple[dict[str, Any], str]:
    """The report of `support/NAME.py`, which gets a place for a model and one for it; its log."""
    output = folder / "report.json"
    program, model = SUPPORT / f"{name}.py", folder / "model"
    done = run_warm(program, str(model), str(output), *arguments, **more)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(output.read_text()), done.stderr


class _Importer:
    """The process that has imported a version of SGLang; it ends with ours."""

    def __init__(self, sglang: str) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=neutral_environment(sglang),
            cwd=tempfile.gettempdir(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )

    def run(
        self, arguments: list[str], variables: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            texts = [Path(folder, name) for name in ("stdout", "stderr")]
            job = {"arguments": arguments, "variables": variables, "texts": list(map(str, texts))}
            print(json.dumps(job), file=self._process.stdin, flush=True)
            if not select.select([self._process.stdout], [], [], LIMIT_S)[0]:
                os.killpg(self._process.pid, signal.SIGKILL)
            code = self._process.stdout.readline()
            if not code:
                _importer.cache_clear()
                self._log.seek(0)
                said = "".join(file.read_text() for file in texts if file.exists())
                raise RuntimeError(f"{arguments} did not end:\n{self._log.read()}{said}"[-4000:])
            return subprocess.CompletedProcess(
                arguments, int(code), *(file.read_text() for file in texts)
            )


_importer = functools.cache(_Importer)


def _fork_for_each_job() -> list[str]:
    """Returns in a fork only, with the arguments of its program."""
    # what SGLang prints is no answer
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import sglang.srt.managers.scheduler  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        if (child := os.fork()) == 0:
            os.environ.update(job["variables"])
            for number, name in enumerate((os.devnull, *job["texts"])):
                os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
            return job["arguments"]
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
    os._exit(0)


def _end_with(program: str) -> None:
    """Run the program and end; not as Python ends, which takes modules apart for seconds."""
    code = 1
    sys.path[0] = str(Path(program).parent)
    try:
        runpy.run_path(program, run_name="__main__")
        code = 0
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.argv = _fork_for_each_job()
    _end_with(sys.argv[0])
