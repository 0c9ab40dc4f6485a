"""What the name `codec` means to SGLang's arguments: decode and verify with codec, not more."""

from __future__ import annotations

from collections.abc import Callable
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


def fit_to_the_model(original: Callable[..., Any], server_args: Any) -> Any:
    """AROUND hook: while SGLang fits its arguments to a model, decode goes by the prefill's name.

    Why: gpt-oss and Gemma 4 allow certain names only, and a model's own default backend is chosen
    only where no name is given. What codec does not decode is decoded by the prefill backend.
    Upstream: the function reads the names, and declares a base name.
    Remove when: SGLang asks a registered backend what it can do.
    """
    if server_args.decode_attention_backend != BACKEND_NAME:
        return original(server_args)
    _declare(server_args, decode_attention_backend=server_args.prefill_attention_backend)
    try:
        return original(server_args)
    finally:
        _declare(server_args, decode_attention_backend=BACKEND_NAME)


def verify_by_decoding(server_args: Any) -> None:
    """BEFORE hook: speculation verifies with the decode backend, and drafts with the prefill's.

    Why: SGLang verifies with the prefill backend unless told otherwise, and its draft backends are
    in maps of names that know only its own.
    Upstream: the function settles how to speculate once the names of attention are settled.
    Remove when: SGLang asks a registered backend whether it verifies, and drafts with another.
    """
    if server_args.decode_attention_backend != BACKEND_NAME:
        return
    if server_args.speculative_algorithm is None:
        return
    from sglang.srt.arg_groups.overrides import attention_backends_of, resolved_view

    view = resolved_view(server_args)
    settled = {"speculative_attention_mode": "decode"}
    if view.speculative_draft_attention_backend is None:
        settled["speculative_draft_attention_backend"], _ = attention_backends_of(view)
    _declare(server_args, **settled)


def name_backends_before_resolution() -> None:
    """Register the hooks; SGLang applies them once all plugins are loaded. Idempotent."""
    from sglang.srt.server_args import ServerArgs

    of_class = "sglang.srt.server_args.ServerArgs."
    # a class made by msgspec never calls a hooked __post_init__, and resolves in a method
    method = "resolve_once" if hasattr(ServerArgs, "resolve_once") else "__post_init__"
    _register(of_class + method, name_the_decode_backend, HookType.BEFORE)
    fitting = "_handle_model_specific_adjustments"
    if hasattr(ServerArgs, fitting):
        _register(of_class + fitting, fit_to_the_model, HookType.AROUND)
    else:
        target = "sglang.srt.arg_groups.model_hook." + fitting[1:]
        _register(target, fit_to_the_model, HookType.AROUND)
    speculating = "sglang.srt.arg_groups.speculative_hook.handle_speculative_decoding"
    _register(speculating, verify_by_decoding, HookType.BEFORE)


def _declare(server_args: Any, **settled: str | None) -> None:
    if getattr(
        server_args, "_input_frozen", False
    ):  # from 0.5.21 on decisions lie beside the input
        from sglang.srt.arg_groups.overrides import declare_resolution

        declare_resolution(server_args, BACKEND_NAME, **settled)
        return
    for name, value in settled.items():
        setattr(server_args, name, value)


def _register(target: str, apply: Callable[..., Any], kind: HookType) -> None:
    if all(hook is not apply for _, hook, _ in HookRegistry._hooks[target]):
        HookRegistry.register(target, apply, kind)
