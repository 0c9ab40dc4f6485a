"""PAT's kernels, from its own package `prefix_attn` on PYTHONPATH.

The package is a compiled CUDA extension. What its source accepts: fp16 or bf16, head dimension 64
or 128, 1, 2, 4 or 8 query heads per KV head, pages of a multiple of 16 slots (32 where a tile of 16
rows takes 128 tokens), at most 32 parts of a request. So it runs where slots are contiguous and
every node but a request's last fills whole pages. Its tiles run on streams that every call makes,
its merge on the legacy default stream: a CUDA graph can hold neither, so it is timed from calls
that the host queued ahead.
"""

from __future__ import annotations

import os
from functools import partial

import torch

from library.attention.problem import Problem
from library.attention.runner import Runner, Unsupported
from library.attention.stock_peers import paged, refuse_unequal_dims
from library.attention.timing import time_host

PAGES = (32, 16)  # the one of its own benchmark first
GROUPS = (1, 2, 4, 8)
HEAD_DIMS = (64, 128)
DTYPES = (torch.float16, torch.bfloat16)
ONE_STREAM = "DISABLE_STREAM"  # the environment variable that it reads in every call


def pat(problem: Problem) -> list[Runner]:
    """PAT's plan and kernels on this problem's own slots: on its streams, and on a single one."""
    refuse_unequal_dims(problem)
    group = problem.num_qo_heads // problem.num_kv_heads
    if group not in GROUPS:
        raise Unsupported(f"{group} query heads per KV head: it has {_either(GROUPS)}")
    if problem.head_dim not in HEAD_DIMS:
        raise Unsupported(f"head dimension {problem.head_dim}: it has {_either(HEAD_DIMS)}")
    if problem.dtype not in DTYPES or problem.kv_dtype != problem.dtype:
        raise Unsupported(f"{problem.form}: it has {_either(DTYPES)}")
    page, table = _pages(problem)
    from prefix_attn import PrefixTreeCPP, prefix_attn_with_kvcache

    def plan(_: int = 0) -> object:
        tree = PrefixTreeCPP(page)
        tree.build_radix_tree(problem.lengths.tolist(), table)
        tree.pack_schedule(None, group, problem.num_kv_heads)
        tree.kernel_info.to_gpu(problem.device)
        return tree

    notes: dict[str, object] = {"pat_plan_ms": time_host(plan, 3, problem.device)}
    tree = plan()
    q = problem.q.unsqueeze(1)
    out = torch.empty_like(q)

    def run(layer: int, one_stream: str) -> torch.Tensor:
        os.environ[ONE_STREAM] = one_stream
        k, v = paged(problem, layer, page)
        prefix_attn_with_kvcache(
            q=q,
            k_cache_paged=k,
            v_cache_paged=v,
            tree=tree,
            softmax_scale=problem.sm_scale,
            out=out,
        )
        return out[:, 0]

    return [
        Runner(partial(run, one_stream=value), variant, notes=notes, capturable=False)
        for value, variant in (("0", f"streams, page {page}"), ("1", f"one stream, page {page}"))
    ]


def _pages(problem: Problem) -> tuple[int, torch.Tensor]:
    """The page size, and the page table int32 `[batch, pages]` on the host."""
    if problem.slots != "contiguous":
        raise Unsupported(f"{problem.slots} slots: it needs pages of {_either(PAGES)} slots")
    for page in PAGES:
        try:
            return page, problem.page_table(page).cpu()
        except ValueError:
            continue
    raise Unsupported(f"the tree's nodes do not fill pages of {_either(PAGES)} slots")


def _either(values: tuple) -> str:
    return ", ".join(map(str, values[:-1])) + f" or {values[-1]}"
