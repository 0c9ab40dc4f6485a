"""`run` against the FlashInfer that is installed, on random forests: `pytest -m cuda`."""

from __future__ import annotations

import pytest
import torch

from sglang_codec import PrefixForest, PrefixSharedDecodeWrapper
from sglang_codec.testing import (
    Counts,
    Problem,
    assert_lse_close,
    kv_indices_of,
    make_problem,
    random_counts,
    with_slots,
)

pytestmark = pytest.mark.cuda

HEADS = [(32, 8), (8, 8), (16, 1), (16, 8), (64, 8)]
# accumulated in another order: a few parts in ten thousand of the error, and no error of zero
ERROR_FACTOR, ERROR_FLOOR = 1.1, 2e-5


@pytest.fixture(scope="module")
def workspace() -> torch.Tensor:
    return torch.zeros(256 << 20, dtype=torch.uint8, device="cuda")


def rows_with_tokens(counts: Counts) -> Counts:
    """FlashInfer leaves the output of a row without KV to chance."""
    return [row for row in counts if sum(tokens for _, tokens in row)]


def flashinfer_decode(
    problem: Problem, indptr: torch.Tensor, indices: torch.Tensor, workspace: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    flashinfer = pytest.importorskip("flashinfer")
    (batch, num_qo_heads, head_dim), num_kv_heads = problem.q.shape, problem.k_buffer.shape[1]
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        workspace, "NHD", use_tensor_cores=num_qo_heads // num_kv_heads >= 4
    )
    wrapper.plan(
        indptr,
        indices,
        torch.ones(batch, dtype=torch.int32, device="cuda"),
        num_qo_heads,
        num_kv_heads,
        head_dim,
        1,
        q_data_type=problem.q.dtype,
        kv_data_type=problem.q.dtype,
        sm_scale=problem.sm_scale,
    )
    # unused slots are NaN: FlashInfer has made no promise about those
    k, v = (buffer.nan_to_num().unsqueeze(1) for buffer in (problem.k_buffer, problem.v_buffer))
    return wrapper.run(problem.q, (k, v), return_lse=True)


def relative_error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    return float((actual.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("heads", HEADS, ids=lambda heads: f"{heads[0]}-{heads[1]}")
@pytest.mark.parametrize(
    ("batch", "nodes", "run", "tail"),
    [(1, 3, 300, 100), (5, 4, 40, 20), (24, 8, 700, 200), (64, 12, 3000, 50), (200, 40, 90, 40)],
)
def test_no_less_exact_than_live_flashinfer(
    heads: tuple[int, int], batch: int, nodes: int, run: int, tail: int, workspace: torch.Tensor
) -> None:
    seed = batch + 1000 * heads[0] + heads[1]
    counts = random_counts(seed, batch=batch, nodes=nodes, longest_run=run, longest_tail=tail)
    paths = with_slots(rows_with_tokens(counts), seed=seed, spare=64)
    problem = make_problem(
        paths,
        num_qo_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=128,
        dtype=torch.bfloat16,
        device="cuda",
        seed=seed,
    )
    wrapper = PrefixSharedDecodeWrapper(*heads, 128, dtype=torch.bfloat16, device="cuda")
    exact, exact_lse = problem.exact()
    indptr, indices = kv_indices_of(paths)
    for forest in (PrefixForest.from_paths(paths), PrefixForest.from_kv_indices(indptr, indices)):
        wrapper.plan(forest, sm_scale=problem.sm_scale)
        ours, our_lse = wrapper.run(problem.q, problem.k_buffer, problem.v_buffer, return_lse=True)
        theirs, their_lse = flashinfer_decode(
            problem, torch.from_numpy(indptr).cuda(), torch.from_numpy(indices).cuda(), workspace
        )
        budget = ERROR_FACTOR * relative_error(theirs, exact) + ERROR_FLOOR
        assert relative_error(ours, exact) <= budget
        assert_lse_close(our_lse, exact_lse)
        assert_lse_close(our_lse, their_lse)
