"""Carry `codec_batch` onto the view that a backend gets when a decode CUDA graph is replayed."""

from __future__ import annotations

from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from sglang_codec.patches.patch import Patch


def copy_codec_batch(view: Any, forward_batch: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER hook; a batch without the attribute (idle ranks, capture) leaves None on the view."""
    view.codec_batch = getattr(forward_batch, "codec_batch", None)


COPY_CODEC_BATCH = Patch(
    target="sglang.srt.model_executor.runner.decode_cuda_graph_runner.build_replay_fb_view",
    hook=HookType.AFTER,
    apply=copy_codec_batch,
    why="the replay view has only the listed fields of a ForwardBatch: codec_batch would be lost",
    upstream="build_replay_fb_view(forward_batch=..., ...) builds a SimpleNamespace that "
    "init_forward_metadata_out_graph receives",
    remove_when="the view keeps unknown attributes of the ForwardBatch",
)
