"""Programs that share an imported SGLang share nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from warm_python import run_warm

PROGRAM = """
import os, sys
import sglang.srt.managers.scheduler as scheduler
print(*sys.argv[1:], os.environ.get("SGLANG_CODEC_DUMP"), hasattr(scheduler, "mark"))
print("it says", file=sys.stderr)
scheduler.mark = True
if "fail" in sys.argv:
    raise ValueError("it fails")
"""


def test_a_program_has_its_own_arguments_variables_state_and_end(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    failed = run_warm(program, "fail", SGLANG_CODEC_DUMP="here")
    assert (failed.returncode, failed.stdout) == (1, "fail here False\n")
    assert failed.stderr.startswith("it says\n")
    assert "ValueError: it fails" in failed.stderr
    done = run_warm(program, "again")
    assert (done.returncode, done.stdout, done.stderr) == (0, "again None False\n", "it says\n")


def test_a_program_that_dies_is_not_taken_for_one_that_ends_well(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert run_warm(program).returncode < 0


def test_variables_that_an_imported_sglang_may_have_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="SGLANG_TEST_RETRACT"):
        run_warm(tmp_path / "program.py", SGLANG_TEST_RETRACT="1")
