"""Attach `codec_batch` to every plain decode `ForwardBatch`."""

from __future__ import annotations

from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from sglang_codec.patches.beam_rows import beam_rows
from sglang_codec.patches.codec_batch import CodecBatch, ReadStates, make_codec_batch, row_states_of
from sglang_codec.patches.fallbacks import FALLBACKS
from sglang_codec.patches.kept_paths import KeptBatches
from sglang_codec.patches.patch import Patch
from sglang_codec.patches.tree_readers import select_reader


class Attacher:
    """Makes the `CodecBatch` of a scheduler's batches; what is kept of a tree ends with it.

    `most_kept`: batches that take turns, one for each pipeline micro-batch.
    """

    def __init__(self) -> None:
        self.most_kept = 1
        self._tree_cache: Any = None
        self._kept: KeptBatches | None = None
        self._row_states: ReadStates | None = None

    def kept(self, tree_cache: Any) -> KeptBatches:
        if self._kept is None or tree_cache is not self._tree_cache:
            self._tree_cache = tree_cache
            self._kept = KeptBatches(select_reader(tree_cache), self.most_kept)
        return self._kept

    def codec_batch(self, batch: Any) -> CodecBatch:
        if self._row_states is None:
            self._row_states = row_states_of(batch.reqs[0])
        rows, kept = len(batch.seq_lens), self.kept(batch.tree_cache)
        beams = beam_rows(batch, rows) if rows > len(batch.reqs) else ()
        return make_codec_batch(batch.reqs, rows, kept, self._row_states, beams)


ATTACHER = Attacher()


def attach_codec_batch(
    forward_batch: Any, _cls: type, batch: Any, model_runner: Any, *args: Any, **kwargs: Any
) -> None:
    """AFTER hook; other modes, draft workers and speculative batches get no attribute."""
    try:
        if _is_plain_decode(forward_batch, batch, model_runner):
            forward_batch.codec_batch = ATTACHER.codec_batch(batch)
    except Exception as error:  # a batch that cannot be described is served without sharing
        forward_batch.codec_batch = None
        FALLBACKS.record(f"describing the batch failed with {type(error).__name__}", error)


def _is_plain_decode(forward_batch: Any, batch: Any, model_runner: Any) -> bool:
    spec = batch.spec_algorithm
    return (
        forward_batch.forward_mode.is_decode()
        and not model_runner.is_draft_worker
        and (spec is None or spec.is_none())
        and bool(batch.reqs)
    )


ATTACH_CODEC_BATCH = Patch(
    target="sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new",
    hook=HookType.AFTER,
    apply=attach_codec_batch,
    why="the backend needs the radix path of each request, and a ForwardBatch drops the requests",
    upstream="ForwardBatch.init_new(batch, model_runner) sees the ScheduleBatch: its live requests "
    "and its tree_cache, on the only thread that changes the tree",
    remove_when="ForwardBatch exposes the requests' tree nodes to attention backends",
)
