"""Record outputs of the real FlashInfer on a GPU, for tests on machines that have none.

    python tests/support/record_flashinfer.py                    # head dim 128
    python tests/support/record_flashinfer.py --head-dims 128,64

Only outputs and log-sum-exps are stored. Inputs are made again from the case's seed: the raw 64-bit
stream of NumPy's PCG64, whose top 24 bits become numbers uniform in [-sqrt(3), sqrt(3)) (variance
1), rounded to bf16; first q, then K, then V. A SHA-256 of them is stored beside the outputs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from sglang_codec.reference import decode_attention
from sglang_codec.testing import Counts, Paths, rows_of, with_slots, without_pages

DATA = Path(__file__).resolve().parents[1] / "data"
LARGEST_ERROR = 1e-2  # of FlashInfer itself against fp64: beyond it the recipe is wrong

# shared runs fill whole pages, so that the same tree works for every page size
FEW_SHOT: Counts = [[("prompt", 64), (f"tail {n}", n)] for n in (1, 17, 63, 200)]
MIXED: Counts = [
    [("root", 48), ("left", 160), ("a", 17)],
    [("other root", 63)],
    [("root", 48), ("right", 16), ("b", 1)],
    [("root", 48), ("left", 160), ("c", 63)],
    [("single token", 1)],
    [("root", 48), ("right", 16), ("d", 200)],
]
TREES = {"few-shot": FEW_SHOT, "mixed": MIXED}


@dataclass(frozen=True)
class Case:
    """One recorded batch."""

    tree: str
    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int

    @property
    def name(self) -> str:
        heads = f"{self.num_qo_heads}-{self.num_kv_heads}"
        return f"{self.tree}_heads-{heads}_dim-{self.head_dim}_page-{self.page_size}"

    @property
    def seed(self) -> int:
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4], "little")

    @property
    def paths(self) -> Paths:
        return with_slots(TREES[self.tree], seed=self.seed, page_size=self.page_size)

    @property
    def sm_scale(self) -> float:
        return self.head_dim**-0.5


CASES = [
    Case(tree, *heads, head_dim, page_size)
    for head_dim in (128, 64)
    for tree in TREES
    for heads in ((8, 2), (8, 8), (16, 1))
    for page_size in (1, 16)
]


@dataclass(frozen=True)
class Inputs:
    """bf16 tensors on the CPU; K and V are `[pages, page_size, num_kv_heads, head_dim]`."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    rows: list[torch.Tensor]
    digest: str

    def exact(self, sm_scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The fp64 output and base-2 log-sum-exp."""
        k, v = without_pages(self.k), without_pages(self.v)
        return decode_attention(self.q, k, v, self.rows, sm_scale)


def make_inputs(case: Case) -> Inputs:
    rows = rows_of(case.paths)
    pages = int(max(row.max() for row in rows)) // case.page_size + 1
    stream = np.random.PCG64(case.seed)
    q = _uniform(stream, (len(rows), case.num_qo_heads, case.head_dim))
    shape = (pages, case.page_size, case.num_kv_heads, case.head_dim)
    k, v = _uniform(stream, shape), _uniform(stream, shape)
    digest = hashlib.sha256()
    for tensor in (q, k, v):
        digest.update(tensor.view(torch.int16).numpy().tobytes())
    slots = [torch.from_numpy(row.astype(np.int64)) for row in rows]
    return Inputs(q, k, v, slots, digest.hexdigest())


def _uniform(stream: np.random.PCG64, shape: tuple[int, ...]) -> torch.Tensor:
    raw = stream.random_raw(int(np.prod(shape))) >> np.uint64(40)
    values = (raw.astype(np.float64) / 2**24 - 0.5) * (2 * 3**0.5)
    return torch.from_numpy(values.astype(np.float32)).reshape(shape).bfloat16()


def page_tables(case: Case, inputs: Inputs) -> tuple[list[int], list[int], list[int]]:
    """FlashInfer's `indptr`, `indices` and `last_page_len`."""
    indptr, indices, last_page_len = [0], [], []
    for slots in inputs.rows:
        pages = (slots[:: case.page_size] // case.page_size).tolist()
        whole = torch.tensor(pages)[:, None] * case.page_size + torch.arange(case.page_size)
        assert torch.equal(whole.flatten()[: len(slots)], slots), "the run does not fill its pages"
        indices += pages
        indptr.append(len(indices))
        last_page_len.append((len(slots) - 1) % case.page_size + 1)
    return indptr, indices, last_page_len


def flashinfer_decode(case: Case, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log-sum-exp of FlashInfer's paged decode, with tensor cores as SGLang would."""
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    workspace = torch.zeros(128 << 20, dtype=torch.uint8, device="cuda")
    wrapper = BatchDecodeWithPagedKVCacheWrapper(
        workspace, "NHD", use_tensor_cores=case.num_qo_heads // case.num_kv_heads >= 4
    )
    tables = [torch.tensor(t, dtype=torch.int32).cuda() for t in page_tables(case, inputs)]
    wrapper.plan(
        *tables,
        case.num_qo_heads,
        case.num_kv_heads,
        case.head_dim,
        case.page_size,
        q_data_type=torch.bfloat16,
        kv_data_type=torch.bfloat16,
        sm_scale=case.sm_scale,
    )
    out, lse = wrapper.run(inputs.q.cuda(), (inputs.k.cuda(), inputs.v.cuda()), return_lse=True)
    return out.float().cpu(), lse.float().cpu()


def relative_error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    return float((actual.double() - exact).norm() / exact.norm())


def record(cases: list[Case], out: Path) -> None:
    """Run the cases and write `out`; raises if FlashInfer is not where fp64 says."""
    arrays: dict[str, np.ndarray] = {}
    described = {}
    for case in cases:
        inputs = make_inputs(case)
        values, lse = flashinfer_decode(case, inputs)
        exact, exact_lse = inputs.exact(case.sm_scale)
        error = relative_error(values, exact)
        lse_error = float((lse.double() - exact_lse).abs().max())
        print(f"{case.name}: error {error:.2e}, LSE {lse_error:.2e}", flush=True)
        if not (error < LARGEST_ERROR and lse_error < LARGEST_ERROR):
            raise SystemExit(f"{case.name}: FlashInfer and fp64 disagree; nothing is written")
        arrays[f"{case.name}.out"], arrays[f"{case.name}.lse"] = values.numpy(), lse.numpy()
        described[case.name] = {"inputs_sha256": inputs.digest, "relative_error": error}
    metadata = {"gpu": torch.cuda.get_device_name(), "cases": described}
    metadata["versions"] = {name: version(name) for name in ("torch", "flashinfer-python")}
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, metadata=np.array(json.dumps(metadata)), **arrays)
    print(f"{out}: {len(cases)} cases, {out.stat().st_size / 1e6:.2f} MB")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--head-dims", default="128", help="64 is compiled by FlashInfer at use")
    parser.add_argument("--out", type=Path, help="default: tests/data/flashinfer_<version>.npz")
    options = parser.parse_args()
    wanted = {int(dim) for dim in options.head_dims.split(",")}
    out = options.out or DATA / f"flashinfer_{version('flashinfer-python')}.npz"
    record([case for case in CASES if case.head_dim in wanted], out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
