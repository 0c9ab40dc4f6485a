"""`run` against recorded outputs of the real FlashInfer: see `record_flashinfer.py`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from record_flashinfer import CASES, DATA, Case, make_inputs, page_tables, relative_error

from sglang_codec import PrefixForest, PrefixSharedDecodeWrapper
from sglang_codec.testing import assert_lse_close, kv_indices_of

RECORDINGS = sorted(DATA.glob("flashinfer_*.npz"))
NO_RECORDING = "tests/data has no flashinfer_*.npz: run record_flashinfer.py on a GPU"


def recorded() -> list[pytest.param]:
    """Every recorded case of every FlashInfer version."""
    by_name = {case.name: case for case in CASES}
    found = []
    for path in RECORDINGS:
        with np.load(path) as arrays:
            metadata = json.loads(str(arrays["metadata"]))
            for name, about in metadata["cases"].items():
                out, lse = arrays[f"{name}.out"], arrays[f"{name}.lse"]
                values = (by_name[name], about["inputs_sha256"], out, lse)
                found.append(pytest.param(*values, id=f"{path.stem}-{name}"))
    skip = pytest.mark.skip(reason=NO_RECORDING)
    return found or [pytest.param(None, "", None, None, marks=skip, id="no recording")]


@pytest.mark.parametrize(("case", "digest", "out", "lse"), recorded())
def test_agrees_with_the_recorded_flashinfer(
    case: Case, digest: str, out: np.ndarray, lse: np.ndarray, device: torch.device
) -> None:
    inputs = make_inputs(case)
    assert inputs.digest == digest, "the recorded inputs cannot be made again from their seed"
    exact, exact_lse = inputs.exact(case.sm_scale)
    # on a CPU the same bf16 numbers in fp32: the interpreter has no bf16 arithmetic of its own
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    wrapper = PrefixSharedDecodeWrapper(
        case.num_qo_heads, case.num_kv_heads, case.head_dim, dtype=dtype, device=device
    )
    wrapper.plan(PrefixForest.from_paths(case.paths), sm_scale=case.sm_scale)
    q, k, v = (tensor.to(device, dtype) for tensor in (inputs.q, inputs.k, inputs.v))
    ours, our_lse = (t.cpu() for t in wrapper.run(q, k, v, return_lse=True))

    theirs, their_lse = torch.from_numpy(out), torch.from_numpy(lse)
    their_error = relative_error(theirs, exact)
    assert relative_error(ours, exact) <= 1.1 * their_error + 1e-6
    # ours and theirs can differ by the sum of what each is off
    assert relative_error(ours, theirs.double()) <= 2.2 * their_error + 1e-6
    assert_lse_close(our_lse, exact_lse)
    assert_lse_close(our_lse, their_lse)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_inputs_describe_one_batch(case: Case) -> None:
    """The page tables, the paths and the slots of a case name the same tokens; nothing is NaN."""
    inputs = make_inputs(case)
    indptr, indices, last_page_len = page_tables(case, inputs)
    lengths = (np.diff(indptr) - 1) * case.page_size + last_page_len
    _, kv_indices = kv_indices_of(case.paths)
    assert lengths.tolist() == [len(row) for row in inputs.rows]
    assert torch.cat(inputs.rows).tolist() == kv_indices.tolist()
    assert max(indices) < len(inputs.k)
    assert PrefixForest.from_paths(case.paths).num_shared > 0
    assert make_inputs(case).digest == inputs.digest
    assert 0.9 < float(inputs.k.float().var()) < 1.1


def test_the_inputs_are_those_of_the_recording() -> None:
    """The stream is pinned: another NumPy, or an edit of the recipe, would void every recording."""
    assert make_inputs(CASES[0]).digest == (
        "71a27c8a2067dd16d7e447996de0c28dfc9a887d6f58d3dcb12b186a9adf6a20"
    )
