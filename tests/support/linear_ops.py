"""A small Qwen3-Next, and its linear layers on a CPU: SGLang's own Triton kernels, interpreted.

The one that prefills refuses float32, so torch stands in for it.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
import triton.language as tl
from inproc_scheduler import write_tiny_llama

MODELS = Path(__file__).resolve().parents[1] / "data" / "models"
EMBEDDED = 30.0  # by what embeddings are larger than other weights
Parameters = dict[str, torch.nn.Parameter]
CHUNK = 64  # tokens after which SGLang may want the state


def write_tiny_model(folder: Path, *, linear: bool, on_a_cpu: bool, **heads: Any) -> str:
    """A model folder: a small Llama or, if `linear`, a Qwen3-Next, which a scheduler made in here
    can run afterwards."""
    if linear and on_a_cpu:
        prepare()
    return (write_tiny_qwen3_next if linear else write_tiny_llama)(folder, **heads)


def write_tiny_qwen3_next(
    folder: Path,
    *,
    head_dim: int = 32,
    heads: int = 4,
    kv_heads: int = 2,
    linear_heads: tuple[int, int] = (1, 3),
) -> str:
    """A model folder with a configuration only: a linear layer, and one of full attention.

    Of `linear_heads`, for keys and for values, three for one are parted by torch, one, two or four
    by a Triton kernel, which the interpreter would run for every token.
    """
    config = json.loads((MODELS / "qwen3_next.json").read_text()) | {
        "hidden_size": heads * head_dim // 2,
        "intermediate_size": heads * head_dim,
        "num_hidden_layers": 2,
        "full_attention_interval": 2,
        "shared_expert_intermediate_size": 0,
        "head_dim": head_dim,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "linear_key_head_dim": head_dim // 2,
        "linear_value_head_dim": head_dim // 2,
        "linear_num_key_heads": linear_heads[0],
        "linear_num_value_heads": linear_heads[1],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def draft_from_the_last_token(target: Parameters, draft: Parameters) -> None:
    """Let the newest token decide most about the next one, and the draft (MTP) look at it alone.

    So drafts are right at times. Embeddings and logits are the target's.
    """
    target["model.embed_tokens.weight"].data.mul_(EMBEDDED)
    for name, weight in draft.items():
        if name == "fc.weight":
            weight.data.copy_(torch.eye(*weight.shape))
        elif "norm" in name:
            weight.data.fill_(1)
        elif name.endswith(("o_proj.weight", "w2_weight")):
            weight.data.zero_()


def prepare() -> None:
    """Let the linear layers of a scheduler that is made in here run; before it is made."""
    os.environ["SGLANG_MAMBA_CONV_DTYPE"] = "float32"  # as all else is
    hybrid = importlib.import_module("sglang.srt.layers.attention.hybrid_linear_attn_backend")
    kernels = importlib.import_module("sglang.srt.layers.attention.linear.kernels.gdn_triton")
    kernels.chunk_gated_delta_rule = chunk_gated_delta_rule
    scatter = "scatter_mamba_states_after_mtp_verify"
    setattr(hybrid, scatter, _as_on_a_gpu(getattr(hybrid, scatter)))
    for name, module in list(sys.modules.items()):
        # a name of their own for Triton's function, which the interpreter does not look for
        if name.startswith("sglang.kernels.ops.attention.") and hasattr(module, "exp"):
            module.exp = _exp
    _let_states_be_tracked()
    torch.cuda.synchronize = lambda *_: None  # which models do when they share their embeddings
    torch.zeros = _on_a_cpu(torch.zeros)


def chunk_gated_delta_rule(
    *,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor,
    initial_state_indices: torch.Tensor,
    cu_seqlens: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None, torch.Tensor]:
    """SGLang's of this name, token by token: outputs, nothing, and the states before each chunk.

    ``q, k [1, T, H, K]``, ``v [1, T, HV, V]``, ``g, beta [1, T, HV]``; the states of the rows,
    ``initial_state [slots, HV, V, K]`` at `initial_state_indices`, become those after them.
    """
    heads, scale = v.shape[2], q.shape[-1] ** -0.5
    q, k = (_unit(one[0]).repeat_interleave(heads // one.shape[2], 1) for one in (q, k))
    out, before, ends = torch.empty_like(v), [], cu_seqlens.tolist()
    for slot, (start, end) in zip(initial_state_indices.tolist(), pairwise(ends), strict=True):
        state = initial_state[slot].float()
        for token in range(start, end):
            if (token - start) % CHUNK == 0:
                before.append(state)
            state = state * g[0, token].float().exp()[:, None, None]
            seen = torch.einsum("hvk,hk->hv", state, k[token])
            new = (v[0, token].float() - seen) * beta[0, token].float()[:, None]
            state = state + new[:, :, None] * k[token][:, None]
            out[0, token] = scale * torch.einsum("hvk,hk->hv", state, q[token])
        initial_state[slot] = state
    return out, None, torch.stack(before)[None]


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


@triton.jit
def _exp(x: Any) -> Any:
    return tl.exp(x)


def _on_a_cpu(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """SGLang 0.5.17 keeps what states become in a step on the device "cuda", whatever it has."""

    @functools.wraps(make)
    def wrapped(*args: Any, device: Any = None, **more: Any) -> torch.Tensor:
        return make(*args, device="cpu" if device == "cuda" else device, **more)

    return wrapped


def _as_on_a_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """For a function that looks where its tensors are before it launches Triton's kernels."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with mock.patch.object(torch.Tensor, "is_cuda", True):
            return function(*args, **kwargs)

    return wrapped


def _let_states_be_tracked() -> None:
    """Overlapped, SGLang keeps states of a row's earlier tokens, where it knows the device."""
    from sglang.srt.server_args import ServerArgs

    name = "_validate_mamba_extra_buffer"
    if hasattr(ServerArgs, name):
        setattr(ServerArgs, name, lambda *_, **__: None)
    else:
        hook = importlib.import_module("sglang.srt.arg_groups.mamba_hook")
        setattr(hook, name[1:], lambda *_, **__: None)
