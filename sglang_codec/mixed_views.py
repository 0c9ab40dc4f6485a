"""The two parts of a MIXED batch, each as a batch of its own: prompts, and rows that decode."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from sglang.srt.model_executor.forward_batch_info import ForwardMode

# what attention backends read of a batch, an entry for each row or for each token
_OF_ROWS = (
    "req_pool_indices",
    "req_pool_indices_cpu",
    "seq_lens",
    "seq_lens_cpu",
    "orig_seq_lens",
    "extend_seq_lens",
    "extend_prefix_lens",
    "extend_start_loc",
    "extend_seq_lens_cpu",
    "extend_prefix_lens_cpu",
    "extend_logprob_start_lens_cpu",
)
_OF_TOKENS = ("input_ids", "positions", "out_cache_loc", "out_cache_loc_virtual")
# kernels are compiled for tensors that begin at a multiple of 16 bytes, which a part need not
_ALIGNED = ("req_pool_indices", "seq_lens", "out_cache_loc")


@dataclass(frozen=True, slots=True)
class MixedViews:
    """Views of a MIXED batch; what they do not cut is the batch's own.

    `prompts` is an EXTEND batch of the first `prompt_tokens` tokens, `decode` a DECODE batch of the
    tokens from there up to `tokens`, one for each row. What follows is padding. There are no
    prompts where SGLang has only a decode batch look like one, for other data-parallel ranks.
    """

    prompts: Any
    decode: Any
    prompt_tokens: int
    tokens: int


def holds_decoding_rows(forward_batch: Any) -> bool:
    """Whether this batch, which SGLang gives to a prefill backend, is described as such."""
    mode = getattr(forward_batch, "forward_mode", None)
    if mode is not None and mode.is_decode_or_idle():  # a hybrid of this backend alone
        return False
    return getattr(forward_batch, "codec_batch", None) is not None


def why_not_cut(forward_batch: Any) -> str | None:
    """What keeps this batch with decoding rows from being cut, if anything does."""
    prompts, rows = forward_batch.codec_batch.prompts, forward_batch.codec_batch.rows
    lengths = forward_batch.extend_seq_lens_cpu
    if lengths is None or forward_batch.seq_lens_cpu is None:
        return "its lengths are only on the device"
    if forward_batch.batch_size != prompts + rows or len(lengths) != prompts + rows:
        return "it has other rows than the scheduler's"
    if any(n != 1 for n in lengths[prompts:]):
        return "a row decodes several tokens"
    if forward_batch.input_ids is None or len(forward_batch.input_ids) < sum(lengths):
        return "it has other tokens than the scheduler's"
    if forward_batch.spec_info is not None or forward_batch.encoder_lens is not None:
        return "it verifies drafts or has an encoder"
    if any(given is not None for given in forward_batch.mm_inputs or ()):
        return "a prompt has images or sound, whose masks are the whole batch's"
    return None


def cut(forward_batch: Any) -> MixedViews:
    """Cut a batch for which `why_not_cut` has no reason; nothing waits for the device."""
    rows = forward_batch.codec_batch.prompts
    tokens = sum(forward_batch.extend_seq_lens_cpu)
    first = sum(forward_batch.extend_seq_lens_cpu[:rows])
    prompts = _part(forward_batch, slice(0, rows), slice(0, first))
    prompts.forward_mode, prompts.codec_batch = ForwardMode.EXTEND, None
    prompts.extend_num_tokens = first
    decode = _part(forward_batch, slice(rows, None), slice(first, tokens))
    decode.forward_mode, decode.codec_batch = ForwardMode.DECODE, forward_batch.codec_batch
    for name in _ALIGNED:
        setattr(decode, name, getattr(decode, name).clone())
    return MixedViews(prompts, decode, first, tokens)


def _part(forward_batch: Any, rows: slice, tokens: slice) -> Any:
    part = copy.copy(forward_batch)
    for names, kept in ((_OF_ROWS, rows), (_OF_TOKENS, tokens)):
        for name in names:
            if (whole := getattr(part, name, None)) is not None:
                setattr(part, name, whole[kept])
    part.batch_size = len(part.extend_seq_lens_cpu)
    part.seq_lens_sum = int(part.seq_lens_cpu.sum())
    # from 0.5.23 on the slots of window layers are looked up in the scheduler's plan
    if (plan := getattr(part, "kv_loc_plan", None)) is not None:
        part.kv_loc_cols = plan.cols_slice(part.kv_loc_cols, tokens)
    return part
