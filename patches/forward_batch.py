"""Attach `codec_batch` to every plain `ForwardBatch` with rows that decode or verify."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from sglang_codec.patches.beam_rows import beam_rows
from sglang_codec.patches.codec_batch import (
    CodecBatch,
    ReadStates,
    lengths_of,
    make_codec_batch,
    row_states_of,
)
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
        self._unseen = 0  # steps of speculating requests that codec has no part in
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

    def verified_batch(self, batch: Any) -> CodecBatch:
        """Describe rows that grow by what of their drafts is accepted, which the device knows."""
        described = self._described(batch, batch.reqs, len(batch.reqs), (), 0, self._unseen)
        # DFLASH has room for a block, or all that is allocated, in what it leaves there
        if batch.seq_lens_cpu is not None and not batch.spec_algorithm.is_dflash():
            return described
        return replace(described, least_lengths=lengths_of(batch.reqs))

    def pass_over(self) -> None:
        """Rows that verify grow in a step that codec does not see: no plan of theirs is kept."""
        self._unseen += 1

    def mixed_batch(self, batch: Any) -> CodecBatch:
        """Describe the rows that decode, which SGLang puts behind those that prefill, if any do."""
        prompts = len(batch.reqs) - len(batch.decoding_reqs)
        decoding = batch.reqs[prompts:]
        if len(batch.seq_lens) != len(batch.reqs) or decoding != batch.decoding_reqs:
            raise ValueError("the last rows of a mixed batch are not the requests that decode")
        return self._described(batch, decoding, len(decoding), (), prompts)

    def _described(
        self, batch: Any, reqs: Any, rows: int, beams: Any, prompts: int, epoch: int = 0
    ) -> CodecBatch:
        if self._row_states is None:
            self._row_states = row_states_of(reqs[0])
        kept = self.kept(batch.tree_cache)
        return make_codec_batch(reqs, rows, kept, self._row_states, beams, prompts, epoch)


ATTACHER = Attacher()


def attach_codec_batch(
    forward_batch: Any, _cls: type, batch: Any, model_runner: Any, *args: Any, **kwargs: Any
) -> None:
    """AFTER hook; other modes, draft workers and draft batches get no attribute."""
    try:
        if model_runner.is_draft_worker or not batch.reqs:
            return
        if _speculates(batch):
            _attach_to_verify(forward_batch, batch)
        elif forward_batch.forward_mode.is_decode():
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


def _attach_to_verify(forward_batch: Any, batch: Any) -> None:
    mode = forward_batch.forward_mode
    if mode.is_target_verify():
        forward_batch.codec_batch = ATTACHER.verified_batch(batch)
    elif mode.is_decode() or (mode.is_extend() and batch.decoding_reqs):
        ATTACHER.pass_over()
        FALLBACKS.record("rows that speculate decode a token beside it, with the stock backend")


def _speculates(batch: Any) -> bool:
    spec = batch.spec_algorithm
    return spec is not None and not spec.is_none()


ATTACH_CODEC_BATCH = Patch(
    target="sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new",
    hook=HookType.AFTER,
    apply=attach_codec_batch,
    why="the backend needs the radix path of each request, and a ForwardBatch drops the requests",
    upstream="ForwardBatch.init_new(batch, model_runner) sees the ScheduleBatch: its live requests "
    "and its tree_cache, on the only thread that changes the tree",
    remove_when="ForwardBatch exposes the requests' tree nodes to attention backends",
)
