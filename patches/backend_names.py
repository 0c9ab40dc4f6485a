"""Read `--attention-backend codec` as what it means: decode with codec, prefill with a default."""

from __future__ import annotations

from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_codec.config import BACKEND_NAME, CodecConfig


def name_the_decode_backend(server_args: Any) -> None:
    """BEFORE hook: `codec` moves from the base and prefill names to the decode name.

    Why: SGLang allows some models (EXAONE 4, Llama 4) only certain base names, and chooses the
    prefill backend that suits model and GPU only where no base name is given.
    Upstream: everything is derived from the three names when the arguments are resolved. An
    unresolved `codec` elsewhere still reaches the factory, which then builds the hybrid itself.
    Remove when: SGLang checks the name of the backend that does the work.
    """
    base = server_args.attention_backend
    if (server_args.decode_attention_backend or base) != BACKEND_NAME:
        return
    if getattr(server_args, "_resolution_finished", False):
        return
    server_args.decode_attention_backend = BACKEND_NAME
    prefills = (server_args.prefill_attention_backend or base) == BACKEND_NAME
    if prefills:
        server_args.prefill_attention_backend = None
    if base in (None, BACKEND_NAME):
        server_args.attention_backend = CodecConfig.from_env().prefill_backend if prefills else None


def name_backends_before_resolution() -> None:
    """Register the hook; SGLang applies it once all plugins are loaded. Idempotent."""
    from sglang.srt.server_args import ServerArgs

    # a class made by msgspec never calls a hooked __post_init__, and resolves in a method
    method = "resolve_once" if hasattr(ServerArgs, "resolve_once") else "__post_init__"
    target = f"sglang.srt.server_args.ServerArgs.{method}"
    if all(hook is not name_the_decode_backend for _, hook, _ in HookRegistry._hooks[target]):
        HookRegistry.register(target, name_the_decode_backend, HookType.BEFORE)
