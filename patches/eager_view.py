"""Carry `codec_batch` onto the copy of a `ForwardBatch` that eager forward passes use."""

from __future__ import annotations

from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from sglang_codec.patches.patch import Patch


def keep_codec_batch(
    view: Any, _runner: Any, forward_batch: Any, *args: Any, **kwargs: Any
) -> None:
    """AFTER hook; only where the batch has the attribute."""
    if hasattr(forward_batch, "codec_batch"):
        view.codec_batch = forward_batch.codec_batch


KEEP_CODEC_BATCH = Patch(
    target="sglang.srt.model_executor.runner.eager_runner.EagerRunner.load_batch",
    hook=HookType.AFTER,
    apply=keep_codec_batch,
    why="the eager runner decodes with a dataclasses.replace copy of the ForwardBatch, which has "
    "the declared fields only: codec_batch would be lost",
    upstream="EagerRunner.load_batch(forward_batch, ...) returns the copy that "
    "init_forward_metadata and the layers receive",
    remove_when="the copy keeps unknown attributes, or ForwardBatch has a field for backends",
)
