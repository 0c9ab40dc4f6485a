"""Entry point of group `sglang.srt.plugins`: registers the attention backend `codec`.

SGLang calls it in every process, before the GPU is selected, and only logs what it raises. So it
registers names and nothing else; whatever can be refused is refused by the factory, which SGLang
calls only where `codec` is asked for and whose errors it lets through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sglang_codec.config import BACKEND_NAME

if TYPE_CHECKING:
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
    from sglang.srt.model_executor.model_runner import ModelRunner


def load_plugin() -> None:
    """Register the backend's name, its factory and what the name stands for; idempotent."""
    from sglang.srt.layers.attention.attention_registry import (
        ATTENTION_BACKENDS,
        register_attention_backend,
    )
    from sglang.srt.server_args import ATTENTION_BACKEND_CHOICES, add_attention_backend_choices

    if BACKEND_NAME not in ATTENTION_BACKENDS:
        register_attention_backend(BACKEND_NAME)(_create_backend)
    if BACKEND_NAME not in ATTENTION_BACKEND_CHOICES:
        add_attention_backend_choices([BACKEND_NAME])
    from sglang_codec.patches.backend_names import name_backends_before_resolution

    name_backends_before_resolution()
    _prepare_cpu_host()


def _create_backend(model_runner: ModelRunner) -> AttentionBackend:
    """SGLang's factory, called in the scheduler once the GPU is selected."""
    from sglang_codec.factory import create_backend

    return create_backend(model_runner)


def _prepare_cpu_host() -> None:
    # rotary embeddings are built before the attention backend, so the factory would be too late
    from sglang_codec.patches.cpu_host import prepare_cpu_host

    prepare_cpu_host()
