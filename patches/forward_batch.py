"""Attach `codec_batch` to every plain `ForwardBatch` with rows that decode."""

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
    `mixed_batches_are_served`: whether anyone looks at the rows that decode beside a prompt.
    """

    def __init__(self) -> None:
        self.most_kept = 1
        self.mixed_batches_are_served = False
        self._tree_cache: Any = None
        self._kept: KeptBatches | None = None
        self._row_states: ReadStates | None = None

    def kept(self, tree_cache: Any) -> KeptBatches:
        if self._kept is None or tree_cache is not self._tree_cache:
            self._tree_cache = tree_cache
            self._kept = KeptBatches(select_reader(tree_cache), self.most_kept)
        return self._kept

    def codec_batch(self, batch: Any) -> CodecBatch:
        rows = len(batch.seq_lens)
        beams = beam_rows(batch, rows) if rows > len(batch.reqs) else ()
        return self._described(batch, batch.reqs, rows, beams, 0)

    def mixed_batch(self, batch: Any) -> CodecBatch:
        """Describe the rows that decode, which SGLang puts behind those that prefill, if any do."""
        prompts = len(batch.reqs) - len(batch.decoding_reqs)
        decoding = batch.reqs[prompts:]
        if len(batch.seq_lens) != len(batch.reqs) or decoding != batch.decoding_reqs:
            raise ValueError("the last rows of a mixed batch are not the requests that decode")
        return self._described(batch, decoding, len(decoding), (), prompts)

    def _described(self, batch: Any, reqs: Any, rows: int, beams: Any, prompts: int) -> CodecBatch:
        if self._row_states is None:
            self._row_states = row_states_of(reqs[0])
        kept = self.kept(batch.tree_cache)
        return make_codec_batch(reqs, rows, kept, self._row_states, beams, prompts)


ATTACHER = Attacher()


def attach_codec_batch(
    forward_batch: Any, _cls: type, batch: Any, model_runner: Any, *args: Any, **kwargs: Any
) -> None:
    """AFTER hook; other modes, draft workers and speculative batches get no attribute."""
    try:
        if not _is_plain(batch, model_runner):
            return
        if forward_batch.forward_mode.is_decode():
            forward_batch.codec_batch = ATTACHER.codec_batch(batch)
        elif forward_batch.forward_mode.is_extend() and batch.decoding_reqs:
            # MIXED, or a decode batch that looks like a prefill for other data-parallel ranks
            if ATTACHER.mixed_batches_are_served:
                forward_batch.codec_batch = ATTACHER.mixed_batch(batch)
            else:
                FALLBACKS.record("a mixed batch is attended by the prefill backend alone")
    except Exception as error:  # a batch that cannot be described is served without sharing
        forward_batch.codec_batch = None
        FALLBACKS.record(f"describing the batch failed with {type(error).__name__}", error)


def _is_plain(batch: Any, model_runner: Any) -> bool:
    spec = batch.spec_algorithm
    return (
        not model_runner.is_draft_worker
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
