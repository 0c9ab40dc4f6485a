"""Decode kernels that SGLang uses today; none of them is told about sharing."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import numpy as np
import torch

from library.attention.problem import Problem
from library.attention.runner import Runner, Unsupported

WORKSPACE_BYTES = 512 << 20


@cache
def workspace(device: torch.device) -> torch.Tensor:
    """FlashInfer's float workspace; its wrappers run one after another and may share it."""
    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)


def refuse_unequal_dims(problem: Problem) -> None:
    """For peers that have one head dimension."""
    if problem.head_dim != problem.value_dim:
        raise Unsupported(f"values of {problem.value_dim} for keys of {problem.head_dim}")


def flashinfer(problem: Problem) -> list[Runner]:
    """FlashInfer's paged decode: with tensor cores, and without them where the group is small."""
    if problem.head_dim != problem.value_dim or problem.query_rows > 1:
        return [_flashinfer_prefill(problem)]
    group = problem.num_qo_heads // problem.num_kv_heads
    variants = (True,) if group >= 4 else (True, False)
    return [_flashinfer_decode(problem, tensor_cores) for tensor_cores in variants]


def _flashinfer_decode(problem: Problem, tensor_cores: bool) -> Runner:
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    wrapper = BatchDecodeWithPagedKVCacheWrapper(
        workspace(problem.device), "NHD", use_tensor_cores=tensor_cores
    )
    wrapper.plan(
        problem.tensor(problem.kv_indptr),
        problem.tensor(problem.kv_indices),
        torch.ones(problem.batch, dtype=torch.int32, device=problem.device),
        problem.num_qo_heads,
        problem.num_kv_heads,
        problem.head_dim,
        1,
        q_data_type=problem.dtype,
        kv_data_type=problem.kv_dtype,
        sm_scale=problem.sm_scale,
    )

    def run(layer: int) -> torch.Tensor:
        return wrapper.run(problem.q, paged(problem, layer))

    return Runner(run, "tensor cores" if tensor_cores else "CUDA cores")


def _flashinfer_prefill(problem: Problem) -> Runner:
    """Its prefill of few tokens a request, of one as the decode with tensor cores is too: only that
    takes several, or two head dimensions."""
    from flashinfer import BatchPrefillWithPagedKVCacheWrapper

    wrapper = BatchPrefillWithPagedKVCacheWrapper(workspace(problem.device), "NHD")
    rows = torch.arange(problem.batch + 1, dtype=torch.int32, device=problem.device)
    wrapper.plan(
        rows * problem.query_rows,
        problem.tensor(problem.kv_indptr),
        problem.tensor(problem.kv_indices),
        torch.ones(problem.batch, dtype=torch.int32, device=problem.device),
        problem.num_qo_heads,
        problem.num_kv_heads,
        problem.head_dim,
        1,
        head_dim_vo=problem.value_dim,
        causal=problem.query_rows > 1,
        q_data_type=problem.dtype,
        kv_data_type=problem.kv_dtype,
        sm_scale=problem.sm_scale,
    )

    def run(layer: int) -> torch.Tensor:
        return wrapper.run(problem.q, paged(problem, layer))

    return Runner(run, f"prefill of {problem.query_rows} tokens")


def paged(problem: Problem, layer: int, page: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of a layer as `[pages, page, num_kv_heads, head_dim]`, V with `value_dim`."""
    k, v = (
        tensor.view(-1, page, problem.num_kv_heads, dim)
        for tensor, dim in zip((problem.k[layer], problem.v[layer]), problem.dims, strict=True)
    )
    return k, v


def fa3(problem: Problem) -> list[Runner]:
    """FlashAttention-3 over a page table, as SGLang's `fa3` backend calls it: all of it in fp8."""
    if reason := _fa3_refusal(str(problem.kv_dtype).removeprefix("torch."), problem.dims):
        raise Unsupported(reason)
    from sgl_kernel.flash_attn import flash_attn_with_kvcache

    table = problem.page_table()
    lengths = problem.tensor(problem.lengths)
    q = problem.q.unflatten(0, (problem.batch, problem.query_rows)).to(problem.kv_dtype)
    scales = {}
    if problem.kv_dtype != problem.dtype:
        ones = torch.ones(problem.batch, problem.num_kv_heads, device=problem.device)
        scales = {"k_descale": ones, "v_descale": ones}

    def run(layer: int) -> torch.Tensor:
        k, v = paged(problem, layer)
        out = flash_attn_with_kvcache(
            q,
            k,
            v,
            cache_seqlens=lengths,
            page_table=table,
            softmax_scale=problem.sm_scale,
            causal=True,
            window_size=(problem.window - 1, 0) if problem.window else (-1, -1),
            sinks=problem.sinks,
            **scales,
        )
        return out.flatten(0, 1)

    return [Runner(run)]


# a build without the wanted kernel ends the process instead of raising: ask a child first
_FA3_PROBE = """
import torch
from sgl_kernel.flash_attn import flash_attn_with_kvcache
k, v = (torch.zeros(4, 1, 1, dim, dtype=torch.{dtype}, device="cuda") for dim in {dims})
table = torch.arange(4, dtype=torch.int32, device="cuda").unsqueeze(0)
lengths = torch.full((1,), 4, dtype=torch.int32, device="cuda")
flash_attn_with_kvcache(k[:1], k, v, cache_seqlens=lengths, page_table=table, causal=True)
torch.cuda.synchronize()
"""


@cache
def _fa3_refusal(dtype: str, dims: tuple[int, int]) -> str:
    if dtype == "bfloat16" and dims in ((64, 64), (128, 128)):
        return ""
    probe = _FA3_PROBE.format(dims=dims, dtype=dtype)
    child = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    if child.returncode == 0:
        return ""
    lines = child.stderr.strip().splitlines() or [f"exit status {child.returncode}"]
    return f"no FA3 kernel for {dtype}, head dims {dims}: {lines[-1]}"


def sglang_triton(problem: Problem) -> list[Runner]:
    """SGLang's Triton decode, at its default number of KV splits and at twice that."""
    return [_sglang_triton(problem, splits) for splits in (8, 16)]


def _sglang_triton(problem: Problem, max_splits: int) -> Runner:
    decode_attention_fwd, choose_splits = _sglang_triton_functions()
    shape = (problem.batch, problem.num_qo_heads, max_splits)
    partial_out = torch.empty(*shape, problem.value_dim, device=problem.device)
    partial_lse = torch.empty(shape, device=problem.device)
    out = problem.empty()
    indptr = problem.tensor(problem.kv_indptr)
    indices = problem.tensor(problem.kv_indices, torch.int64)
    splits = torch.empty(problem.batch, dtype=torch.int32, device=problem.device)
    choose_splits[(1,)](
        splits,
        problem.tensor(np.diff(problem.kv_indptr)),
        problem.batch,
        1,
        problem.num_qo_heads,
        problem.num_kv_heads,
        max_splits,
        torch.cuda.get_device_properties(problem.device).multi_processor_count,
        MAX_NUM_SEQ=max(256, 1 << (problem.batch - 1).bit_length()),
    )

    def run(layer: int) -> torch.Tensor:
        decode_attention_fwd(
            problem.q,
            problem.k[layer],
            problem.v[layer],
            out,
            indptr,
            indices,
            partial_out,
            partial_lse,
            splits,
            max_splits,
            problem.sm_scale,
            1.0,
            1.0,
            sinks=problem.sinks,
        )
        return out

    return Runner(run, f"{max_splits} splits")


def _sglang_triton_functions() -> tuple:
    """The decode function and the kernel that chooses the splits; both moved after 0.5.16."""
    try:
        from sglang.kernels.ops.attention.decode_attention import decode_attention_fwd
        from sglang.kernels.ops.attention.metadata import get_num_kv_splits_triton
    except ImportError:
        from sglang.srt.layers.attention.triton_backend import get_num_kv_splits_triton
        from sglang.srt.layers.attention.triton_ops.decode_attention import decode_attention_fwd
    return decode_attention_fwd, get_num_kv_splits_triton
