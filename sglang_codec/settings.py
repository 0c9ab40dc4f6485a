"""What SGLang was started with, resolved, in every version."""

from __future__ import annotations

from typing import Any

# where SGLang's runtime_context keeps each setting, resolved
NAMESPACES = {
    "speculative_algorithm": "spec",
    "speculative_num_draft_tokens": "spec",
    "speculative_eagle_topk": "spec",
    "speculative_adaptive": "spec",
    "speculative_attention_mode": "spec",
    "enable_deterministic_inference": "exec.deterministic",
    "enable_two_batch_overlap": "exec.overlap",
    "enable_unified_memory": "memory",
    "disable_radix_cache": "memory",
    "enable_pdmux": "disagg",
    "enable_torch_compile": "exec.graph",
    "cuda_graph_config": "exec.graph",
    "enable_nvidia_megakernel": "exec.kernel",
    "dcp_size": "server_args",
    "pp_size": "parallel",
    "pp_async_batch_depth": "parallel",
    "attn_cp_size": "server_args",
}


def setting(runner: Any, name: str) -> Any:
    """A resolved server setting; None where this SGLang has no such setting."""
    return find_setting(runner, name)[1]


def find_setting(runner: Any, name: str) -> tuple[str, Any]:
    """Where a setting was found, and its value: SGLang's config namespaces, else the arguments.

    From 0.5.21 on the server arguments are raw input, so the namespaces come first; a bare runner
    (unit tests of backends) has only the arguments.
    """
    from sglang.srt import runtime_context

    top, *inner = NAMESPACES[name].split(".")
    try:
        bag = getattr(runtime_context, f"get_{top}")()
        for part in inner:
            bag = getattr(bag, part)
        return "namespace", getattr(bag, name)
    except (AttributeError, ValueError):
        arguments = getattr(runner, "server_args", None)
        found = "arguments" if hasattr(arguments, name) else "nowhere"
        return found, getattr(arguments, name, None)
