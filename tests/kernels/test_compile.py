"""Every kernel compiles for the GPUs we name, without one, and stays within their means."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "kernels" / "compile_kernels.py"
SUNK = ("--sinks", "--soft-cap", "30")
HOPPER = ("--arch", "90", "--dtype", "bf16")
ALL = ("--arch", "80", "90", "100", "--group", "8")


def run_compiled(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own: this one may be interpreting Triton."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    paths = [str(ROOT), str(SCRIPT.parent), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def compile_kernels(
    tmp_path: Path, *arguments: str
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """Run the script; the finished process and the kernels of its report."""
    report = tmp_path / "report.json"
    done = run_compiled(str(SCRIPT), *arguments, "--json", str(report))
    kernels = json.loads(report.read_text())["kernels"] if report.exists() else []
    return done, kernels


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_every_kernel_compiles_and_fits(arch: int, tmp_path: Path) -> None:
    dims = ("--head-dim", "64", "128", "256")
    done, kernels = compile_kernels(tmp_path, "--arch", str(arch), "--group", "4", *dims)
    assert done.returncode == 0, done.stdout + done.stderr
    name = "pac_hopper" if arch == 90 else "pac"
    assert {kernel["kernel"] for kernel in kernels} == {
        name,
        "por",
        "gather_slots",
        "append_slots",
        "follow_lengths",
        "store_kv",
    }
    pac = [kernel for kernel in kernels if kernel["kernel"] == name]
    assert {(kernel["head_dim"], kernel["dtype"]) for kernel in pac} == {
        (head_dim, dtype) for head_dim in ("64", "128", "256") for dtype in ("bf16", "fp16")
    }
    for kernel in pac:
        assert kernel["async_copies"] > 0
        assert kernel["tensor_core"] != "-"
        assert kernel["fitting_ctas"] >= kernel["ctas_per_sm"]
        if name == "pac":
            # no KV loop waits for all of its loads before it computes
            assert min(kernel["in_flight"]) >= 2
            assert len(kernel["in_flight"]) >= len(kernel["tiles"].split(" /")[0].split())


@pytest.mark.parametrize(
    "arguments",
    [
        (
            "--arch",
            "90",
            "--head-dim",
            "128",
            "--dtype",
            "bf16",
            "--group",
            "1",
            "7",
            "16",
            "--lse",
        ),
        ("--arch", "89", "--dtype", "bf16", "--group", "8", "--head-dim", "96", "128", "256"),
        ("--arch=90", "--dtype=bf16", "--group=4", "--no-warp-roles", "--head-dim", "128", "256"),
        ("--arch", "80", "90", "100", "--head-dim", "64", "--dtype", "bf16", "--group", "8", *SUNK),
        ("--arch", "90", "--head-dim", "128", "--dtype", "bf16", "--group", "1", "4", *SUNK),
        (*ALL, "--dtype", "bf16", "--head-dim", "128", "--window-left", "4095"),
        (*ALL, "--dtype", "bf16", "--kv-dtype", "e4m3", "--head-dim", "64", "256"),
        (*ALL, "--dtype", "fp16", "--kv-dtype", "e5m2", "--head-dim", "128", *SUNK),
        ("--arch", "80", "90", "100", "--head-dim", "96", "192/128", "--dtype=bf16", "--group=16"),
        ("--arch", "90", "--head-dim", "80", "192/128", "--dtype", "bf16", "--group", "1", *SUNK),
        (*HOPPER, "--head-dim", "128", "256", "--group", "1", "2", "--rounded-weights"),
        (*ALL, "--dtype", "bf16", "--head-dim", "128", "--query-rows", "4"),
        (*HOPPER, "--head-dim", "128", "256", "--group", "16", "--query-rows", "4", *SUNK),
        (*HOPPER, "--head-dim", "128", "--group", "8", "--query-rows", "8", "--kv-dtype", "e4m3"),
    ],
    ids=[
        "other groups, with LSE",
        "a GPU with little shared memory",
        "a Triton without Gluon",
        "sinks and a cap",
        "sinks and a cap, wide heads",
        "windows",
        "fp8",
        "fp8, sinks and a cap",
        "narrow heads, and values unlike keys",
        "the same with sinks and a cap, exact weights",
        "small groups with rounded weights",
        "four query rows",
        "as many rows as a request may have, sinks and a cap",
        "eight query rows, fp8",
    ],
)
def test_other_variants_compile_and_fit(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done, kernels = compile_kernels(tmp_path, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(kernels) >= 7


@pytest.mark.parametrize(
    ("arch", "change", "problem"),
    [
        (80, "stages=7", "shared memory"),
        (80, "stages=1", "not pipelined"),
        (80, "ctas_per_sm=3", "2 blocks fit a multiprocessor, the grid is made for 3"),
        (90, "stages=6", "shared memory"),
        (90, "ctas_per_sm=2", "1 blocks fit a multiprocessor, the grid is made for 2"),
    ],
)
def test_a_configuration_that_is_no_good_is_reported(arch: int, change: str, problem: str) -> None:
    """The checks can fail."""
    code = (
        "import dataclasses, compile_kernels as c\n"
        "from sglang_codec.kernels.launch import launch_config\n"
        f"gpu, shape = c.GPUS[{arch}], c.ANY_SHAPE\n"
        f"config = dataclasses.replace(launch_config(gpu.capability, shape), {change})\n"
        "launch, _ = c.attention_launches(gpu, config, shape, return_lse=False)\n"
        "ctas = config.ctas_per_sm\n"
        "print(c.examine(launch, gpu, shape=shape, ctas_per_sm=ctas, spill_limit=0).problems)"
    )
    done = run_compiled("-c", code)
    assert problem in done.stdout, done.stdout + done.stderr
