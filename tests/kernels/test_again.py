"""Launches that are repeated without Triton's look at every argument."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from planned import plan_batch

from sglang_codec.attention import prefix_shared_attention, update_lengths
from sglang_codec.testing import (
    assert_within_low_precision_error,
    make_problem,
    with_slots,
)

PROBE = Path(__file__).parents[1] / "support" / "again_probe.py"


def test_a_repeated_launch_passes_what_tritons_own_would() -> None:
    """The kernel, its grid and all its arguments, whatever was launched on the buffers before."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(PROBE)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.split()[0]) > 100


@pytest.mark.parametrize("padding", [0, 3])
def test_a_repeated_launch_attends(padding: int, device: torch.device, dtype: torch.dtype) -> None:
    """Other queries, outputs and numbers of padded rows, as the layers of a step have them."""
    paths = with_slots([[("prompt", 90), (f"tail {row}", 3 + row)] for row in range(7)], seed=3)
    shape = {"num_qo_heads": 8, "num_kv_heads": 2, "head_dim": 64}
    problem = make_problem(paths, **shape, dtype=dtype, device=device)
    planned = plan_batch(paths, problem)
    update_lengths(planned.buffers)
    for rows in (7, 7 + padding, 7):
        q = torch.randn(rows, 8, 64, device=device).to(dtype)
        problem = dataclasses.replace(problem, q=q)
        out = torch.full_like(problem.q, float("nan"))
        prefix_shared_attention(
            problem.q,
            problem.k_buffer,
            problem.v_buffer,
            out,
            planned.buffers,
            sm_scale=problem.sm_scale,
            config=planned.config,
        )
        exact, _ = problem.exact()
        assert_within_low_precision_error(out, exact, problem.eager())
    assert len(planned.buffers.launches) == (device.type == "cuda")
