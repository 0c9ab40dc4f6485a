"""MIXED batches: rows that decode beside a prompt go through codec, the prompt to the stock one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend

from sglang_codec.attention_layers import is_off
from sglang_codec.backend import CodecDecodeBackend
from sglang_codec.layer_groups import check_arguments
from sglang_codec.mixed_views import cut, holds_decoding_rows, why_not_cut
from sglang_codec.patches.fallbacks import FALLBACKS
from sglang_codec.patches.forward_batch import ATTACHER
from sglang_codec.plan_maker import NoPlanError
from sglang_codec.refusals import UnsupportedConfiguration

# stock backends that prefill from what `mixed_views` cuts, and from nothing else of a batch
_CUTTABLE = frozenset(
    {
        "sglang.srt.layers.attention.flashattention_backend.FlashAttentionBackend",
        "sglang.srt.layers.attention.flashinfer_backend.FlashInferAttnBackend",
        "sglang.srt.layers.attention.triton_backend.TritonAttnBackend",
        "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend",
    }
)
# a view of some of a batch's tokens, the first of them, the end of them, and what attends them
_Part = tuple[Any, int, int, Callable[..., torch.Tensor]]

# arguments of a layer that mean the same for any part of a batch's tokens
_OF_ALL_TOKENS = frozenset({"sinks"})


def serve_mixed_batches(attention: Any, decode: CodecDecodeBackend) -> MixedBatches | None:
    """Let `decode` attend the decoding rows of the MIXED batches that SGLang's hybrid prefills.

    Args:
        attention: SGLang's backend of a model runner whose decode backend is `decode`. Where it is
            no hybrid of two backends, nothing is changed and `ATTACHER` counts such batches.
    """
    # a model with linear layers has a pair of backends, whose first one is that of the others
    hybrid = getattr(attention, "full_attn_backend", attention)
    prefill = getattr(hybrid, "prefill_backend", None)
    if prefill is None or hybrid.decode_backend is not decode:
        return None
    ATTACHER.mixed_batches_are_served = True
    return MixedBatches(prefill, decode)


class MixedBatches:
    """Stands before the calls of `prefill` by which SGLang prepares and attends an EXTEND batch.

    SGLang may replay the model's other parts from CUDA graphs; attention, in MIXED batches too, is
    called between them. It prepares with the scheduler's batch and attends with one of its own, so
    how a batch is attended is decided when it is prepared, and kept until the next one is.
    """

    def __init__(self, prefill: AttentionBackend, decode: CodecDecodeBackend) -> None:
        self._decode = decode
        self._prepare, self._extend = prefill.init_forward_metadata, prefill.forward_extend
        self._prepare_graph = prefill.init_forward_metadata_out_graph
        name = f"{type(prefill).__module__}.{type(prefill).__qualname__}"
        # why no MIXED batch can be cut, once that is known
        self._never = None if name in _CUTTABLE else f"{name} may need the whole batch"
        self._batch: Any = None
        self._parts: tuple[_Part, ...] = ()
        fused = getattr(prefill, "get_fused_kv_write_buffers", None)
        prefill.init_forward_metadata = self.init_forward_metadata
        prefill.init_forward_metadata_out_graph = self.init_forward_metadata_out_graph
        prefill.forward_extend = self.forward_extend
        if fused is not None:  # SGLang >= 0.5.23: a model may write K and V, of all tokens, itself
            prefill.get_fused_kv_write_buffers = lambda *of: None if self._parts else fused(*of)

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Prepare both parts of a MIXED batch, or the whole of any batch for `prefill`."""
        self._batch, self._parts = None, ()
        if not holds_decoding_rows(forward_batch):
            self._prepare(forward_batch)
        elif reason := self._never or why_not_cut(forward_batch):
            self._attend_whole(forward_batch, reason)
        else:
            views = cut(forward_batch)
            first, tokens = views.prompt_tokens, views.tokens
            try:
                self._decode.init_forward_metadata(views.decode)
            except NoPlanError as error:  # the prefill backend needs none
                self._attend_whole(forward_batch, "no plan was possible", error)
                return
            if first:
                self._prepare(views.prompts)
                self._parts = ((views.prompts, 0, first, self._extend),)
            self._batch = forward_batch
            self._parts += ((views.decode, first, tokens, self._decode.forward_decode),)

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """A prefill graph that holds the attention of all rows, which codec has no part in."""
        self._batch, self._parts = None, ()
        if holds_decoding_rows(forward_batch):
            _count("the prefill graph holds its attention")
        self._prepare_graph(forward_batch, in_capture=in_capture)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> Any:
        """``q [T, ...]``, k, v likewise or None -> ``[T, Hq * Dv]``, zero for padding."""
        if self._parts and (reason := self._why_unfit(layer, kwargs)):
            # prepared again, for all rows; what the layers before this one have written is there
            self._never, self._parts = reason, ()
            self._attend_whole(self._batch, reason)
        if not self._parts:
            return self._extend(q, k, v, layer, forward_batch, save_kv_cache, **kwargs)
        out = getattr(forward_batch, "_attn_output", None)
        if out is None:
            out = q.new_empty(len(q), layer.tp_q_head_num * layer.v_head_dim)
        out = out.view(len(q), -1)
        for view, start, end, attend in self._parts:
            place = view._attn_output = out[start:end]
            of_part = (None if one is None else one[start:end] for one in (q, k, v))
            got = attend(*of_part, layer, view, save_kv_cache, **kwargs)
            if got.data_ptr() != place.data_ptr():
                place.copy_(got.view(place.shape))
        out[end:] = 0
        return out

    def _attend_whole(self, forward_batch: Any, reason: str, detail: object = "") -> None:
        _count(reason, detail)
        self._prepare(forward_batch)

    def _why_unfit(self, layer: Any, arguments: dict[str, Any]) -> str | None:
        layers = self._decode.layers
        if layer.layer_id in layers.delegated:
            given = {n for n, v in arguments.items() if not is_off(v)} - _OF_ALL_TOKENS
            return f"a layer passes {', '.join(sorted(given))}" if given else None
        if not layers.serves(layer.layer_id):
            return f"layer {layer.layer_id} is not among the model's modules"
        try:
            check_arguments(layer, arguments)
        except UnsupportedConfiguration as error:
            return str(error)
        return None


def _count(reason: str, detail: object = "") -> None:
    FALLBACKS.record(f"a mixed batch is attended by the prefill backend: {reason}", detail)
