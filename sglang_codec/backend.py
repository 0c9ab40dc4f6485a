"""CodecDecodeBackend: SGLang's attention contract for decode or verify -> plan, upload, attend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.attention import base_attn_backend
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend

from sglang_codec.attention_shape import AttentionShape
from sglang_codec.batch_planner import BatchPlanner, MovedRows, NewPlan
from sglang_codec.config import CodecConfig
from sglang_codec.dump import PlanDump, path_of_rank
from sglang_codec.graph_sizes import OutgrownGraphs, largest_decode_graph
from sglang_codec.layer_groups import LayerGroup, LayerGroups, check_arguments
from sglang_codec.patches.fallbacks import FALLBACKS
from sglang_codec.profiled import profiled
from sglang_codec.refusals import UnsupportedConfiguration
from sglang_codec.row_lengths import lengths_of
from sglang_codec.served_group import ServedGroup
from sglang_codec.settings import setting
from sglang_codec.sharing_check import check_sharing
from sglang_codec.speculation import query_rows


class CodecDecodeBackend(AttentionBackend):
    """Decode attention that reads each shared KV run once; other modes are not its business.

    A server that speculates has no decode steps but verifies: ``n`` newest tokens of each request
    attend at once, all but the first of them drafts. Its attention decodes or verifies, not both.

    Args:
        model_runner: SGLang's, with its pools made and its model loaded.
        config: settings of this process.
        ordinary: makes (or returns) SGLang's own backend for layers that the kernels do not
            support; called only if there are such layers.
        exact_weights: whether the softmax weights of small groups are as exact as in fp32
            (`LaunchConfig`), which is SGLang's own attention's to say.
    """

    def __init__(
        self,
        model_runner: Any,
        config: CodecConfig,
        ordinary: Callable[[], AttentionBackend],
        *,
        exact_weights: bool = True,
    ) -> None:
        self.req_to_token_pool = model_runner.req_to_token_pool
        self.token_to_kv_pool = model_runner.token_to_kv_pool
        self.device = torch.device(model_runner.device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.config = config
        self.query_rows = query_rows(model_runner)
        self.max_context_len = getattr(model_runner.model_config, "context_len", None)
        self._graphs = OutgrownGraphs(largest_decode_graph(model_runner))
        self._verify_mask: Any = None
        self._ordinary, self._exact_weights = ordinary, exact_weights
        self.groups: tuple[ServedGroup, ...] = ()
        self.planner = BatchPlanner(most_live=_micro_batches(model_runner))
        self.serve(LayerGroups.of(model_runner))
        self.dump = PlanDump(path_of_rank(config.dump, model_runner)) if config.dump else None

    def serve(self, layers: LayerGroups) -> None:
        """Serve these groups from now on, and leave the other layers to the stock backend."""
        self.layers = layers
        kept = {one.group.shape: one for one in self.groups}
        self.groups = tuple(self._served(group, kept) for group in layers.groups)
        self._group_of = {i: one for one in self.groups for i in one.group.layer_ids}
        self.planner.use([one.maker for one in self.groups], [one.weight for one in self.groups])
        self.ordinary = self._ordinary() if layers.delegated else None

    @property
    def limits(self) -> str:
        """Groups and their capacities, for the start-up banner."""
        return "; ".join(f"{one.group}: {one.limits}" for one in self.groups)

    # SGLang's contract -----------------------------------------------------------------------

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Everything for a step without a CUDA graph."""
        if self._is_beside_speculation(forward_batch):
            self._stock().init_forward_metadata(forward_batch)
            return
        if self.ordinary is not None:
            self.ordinary.init_forward_metadata(forward_batch)
        # SGLang asks nothing of attention in an idle step that is not replayed
        if not _is_idle(forward_batch):
            self._graphs.look(forward_batch.batch_size)
            self._prepare(forward_batch, in_capture=False)
            self._record(forward_batch)

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """Everything that the host decides, before a capture or a replay."""
        if self._is_beside_speculation(forward_batch):
            self._stock().init_forward_metadata_out_graph(forward_batch, in_capture=in_capture)
            return
        if self.ordinary is not None:
            self.ordinary.init_forward_metadata_out_graph(forward_batch, in_capture=in_capture)
        if not in_capture and not all(group.reads_as_it_is_written() for group in self.groups):
            FALLBACKS.record("fp8 scales are others than CUDA graphs read with: capture them again")
        self._prepare(forward_batch, in_capture=in_capture)

    def init_forward_metadata_in_graph(self, forward_batch: Any) -> None:
        """What a captured graph does in each step before the first layer."""
        if self._is_beside_speculation(forward_batch):
            self._stock().init_forward_metadata_in_graph(forward_batch)
            return
        if self.ordinary is not None:
            self.ordinary.init_forward_metadata_in_graph(forward_batch)
        self._record(forward_batch)

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Little to allocate here: rows beyond the buffers' can only be padding."""
        for group in self.groups:
            if group.window_slots:
                group.window_slots.reserve(max_bs)
        if self.ordinary is not None:
            self.ordinary.init_cuda_graph_state(max_bs, max_num_tokens)
        elif self.query_rows > 1:
            self._verify_mask = self._unread_mask(max_bs)

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        if self.ordinary is not None:
            return self.ordinary.get_cuda_graph_seq_len_fill_value()
        return 1

    def on_after_cuda_graph_warmup(self) -> None:
        if self.ordinary is not None:
            self.ordinary.on_after_cuda_graph_warmup()

    def validate_elastic_cuda_graph_recapture(self) -> None:
        if self.ordinary is not None:
            self.ordinary.validate_elastic_cuda_graph_recapture()

    def get_fused_kv_write_buffers(self, layer: Any, forward_batch: Any) -> Any:
        """Where a model may write K and V by itself (SGLang >= 0.5.23); None: it may not."""
        if layer.layer_id in self.layers.delegated:
            return self.ordinary.get_fused_kv_write_buffers(layer, forward_batch)
        return None

    @property
    def kv_index_translator(self) -> Any:
        """SGLang's (from 0.5.19 on), which it sets on the backends that it knows of."""
        return getattr(self.ordinary, "kv_index_translator", None)

    @kv_index_translator.setter
    def kv_index_translator(self, translator: Any) -> None:
        if self.ordinary is not None:
            self.ordinary.kv_index_translator = translator

    @property
    def needs_cpu_seq_lens(self) -> bool:
        """Whether SGLang has to wait for each step's lengths, where only the device knows them."""
        if self.query_rows > 1:
            return self.ordinary is not None and self.ordinary.needs_cpu_seq_lens
        return True

    @property
    def verify_mask(self) -> Any:
        """Where SGLang writes who sees which draft, which for chains is known without."""
        return self._verify_mask if self.ordinary is None else self.ordinary.verify_mask

    def update_verify_buffers_to_fill_after_draft(
        self, spec_info: Any, cuda_graph_bs: int | None
    ) -> None:
        if self.ordinary is not None:
            self.ordinary.update_verify_buffers_to_fill_after_draft(spec_info, cuda_graph_bs)

    def shared_read_ends(self, fm: Any) -> Any:
        """Steps read scheduler-owned tables before the replay only (SGLang >= 0.5.18)."""
        ends = base_attn_backend.SharedReadEnds
        if not (fm.is_target_verify() if self.query_rows > 1 else fm.is_decode()):
            return super().shared_read_ends(fm)
        if self.ordinary is not None:
            return ends.max_of([ends.PRE_REPLAY, self.ordinary.shared_read_ends(fm)])
        return ends.PRE_REPLAY

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """``q [..., Hq, Dk]`` or ``[..., Hq * Dk]``, k, v likewise or None -> ``[B, Hq * Dv]``.

        Where the batch names a place for it (`_attn_output`), that is where the output is.
        """
        if self.query_rows > 1 or layer.layer_id in self.layers.delegated:
            stock = self._stock().forward_decode
            return stock(q, k, v, layer, forward_batch, save_kv_cache, **kwargs)
        return self._attend(q, k, v, layer, forward_batch, save_kv_cache, **kwargs)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """As `forward_decode`, of a step that verifies: ``n`` rows of each request, in order."""
        if not forward_batch.forward_mode.is_target_verify():
            raise RuntimeError(
                "codec decodes only: prefill goes to the backend named by "
                "--prefill-attention-backend or SGLANG_CODEC_PREFILL_BACKEND"
            )
        if layer.layer_id in self.layers.delegated:
            stock = self._stock().forward_extend
            return stock(q, k, v, layer, forward_batch, save_kv_cache, **kwargs)
        return self._attend(q, k, v, layer, forward_batch, save_kv_cache, **kwargs)

    # details ---------------------------------------------------------------------------------

    def _attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool,
        **kwargs: Any,
    ) -> torch.Tensor:
        check_arguments(layer, kwargs)
        group = self._group(layer)
        if save_kv_cache and k is not None:
            group.write(layer, k, v, forward_batch.out_cache_loc)
        out = getattr(forward_batch, "_attn_output", None)
        return group.attend(q, layer, out=out, sinks=kwargs.get("sinks"))

    def _stock(self) -> AttentionBackend:
        return self.ordinary or self._ordinary()

    def _is_beside_speculation(self, forward_batch: Any) -> bool:
        """A step of one token per request in a server that verifies, which `ATTACHER` counts."""
        return self.query_rows > 1 and forward_batch.forward_mode.is_decode()

    def _unread_mask(self, max_bs: int) -> Any:
        """A place for masks that no one reads: without one SGLang makes room for one each step."""
        from sglang.srt.layers.attention.verify_mask import maybe_create_verify_mask

        return maybe_create_verify_mask(
            is_draft_runner=False,
            skip_prefill=False,
            max_bs=max_bs,
            max_context_len=self.max_context_len,
            num_draft_tokens=self.query_rows,
            device=self.device,
            is_read=False,
        )

    def _served(self, group: LayerGroup, kept: dict[AttentionShape, ServedGroup]) -> ServedGroup:
        if group.shape in kept:
            kept[group.shape].group = group
            return kept[group.shape]
        rows = self.req_to_token_pool.req_to_token.shape[0]
        return ServedGroup(
            group,
            self.token_to_kv_pool,
            self.device,
            rows=rows,
            host_rows=self._host_rows,
            exact_weights=self._exact_weights,
        )

    def _group(self, layer: Any) -> ServedGroup:
        if layer.layer_id not in self._group_of:
            raise UnsupportedConfiguration(
                f"layer {layer.layer_id} attends, but was not among the model's layers when the "
                "server started; choose another --attention-backend for this model"
            )
        return self._group_of[layer.layer_id]

    def _prepare(self, forward_batch: Any, *, in_capture: bool) -> None:
        """Plan if the batch changed and fill the KV index.

        Reads `req_to_token` here and nowhere else: the scheduler may rewrite rows of finished
        requests as soon as this has run.
        """
        rows = _planned_rows(forward_batch)
        codec_batch = getattr(forward_batch, "codec_batch", None)
        # SGLang describes its own dummy batches (warm-up) to nobody: they are planned, not counted
        described = hasattr(forward_batch, "codec_batch")
        serves = not in_capture and described and not _is_idle(forward_batch)
        if codec_batch is None and serves:
            FALLBACKS.record("a decode batch without radix paths")
        if codec_batch is None:  # SGLang's own dummy batches may have more rows than requests can
            rows = min(rows, self.req_to_token_pool.req_to_token.shape[0])
        least = getattr(codec_batch, "least_lengths", None)
        width = self.req_to_token_pool.req_to_token.shape[1]
        lengths = lengths_of(forward_batch, rows, self.query_rows, least, width)
        pool_rows = forward_batch.req_pool_indices[:rows]
        new = self.planner.plan_if_changed(codec_batch, lengths, pool_rows, counted=serves)
        for group in self.groups:
            group.take(forward_batch.out_cache_loc)
        if new:
            self._send(new, pool_rows)
            self.planner.times.end("send")
            if serves:
                self.planner.totals.add_times(self.planner.times)
        if serves and self.dump is not None:
            self.dump.write(self.planner, FALLBACKS.counts, changed=bool(new))

    def _record(self, forward_batch: Any) -> None:
        """Take over this step's lengths and append its new KV slots, on the device."""
        lengths = forward_batch.seq_lens
        if self.query_rows > 1:
            lengths = lengths + self.query_rows  # SGLang does not count what is verified
        for group in self.groups:
            group.record(lengths, forward_batch.out_cache_loc)

    @profiled("codec.upload")
    def _send(self, new: tuple[NewPlan | MovedRows, ...], pool_rows: torch.Tensor) -> None:
        table = self.req_to_token_pool.req_to_token
        for group, plan in zip(self.groups, new, strict=True):
            group.send(plan, table, pool_rows)
        if self.config.check_sharing:
            for made in self.planner.made:
                if made.packed.num_shared:
                    check_sharing(made.forest, table, pool_rows)

    def _host_rows(self, pool_rows: torch.Tensor, lengths: Any) -> list[Any]:
        """Every row's KV slots on the host; synchronises."""
        table = self.req_to_token_pool.req_to_token[pool_rows][:, : int(lengths.max())].cpu()
        return [row[:n].numpy() for row, n in zip(table, lengths.tolist(), strict=True)]


def _micro_batches(model_runner: Any) -> int:
    """Batches that take turns on a rank: those in flight in its pipeline."""
    stages = setting(model_runner, "pp_size") or 1
    return stages + (setting(model_runner, "pp_async_batch_depth") or 0)


def _is_idle(forward_batch: Any) -> bool:
    mode = getattr(forward_batch, "actual_forward_mode", forward_batch.forward_mode)
    return mode.is_idle()


def _planned_rows(forward_batch: Any) -> int:
    """Rows of the batch before SGLang padded it, which is what the radix paths describe.

    It pads for a captured size (`num_padding` of the replay view) and, under DP attention, to the
    largest of all ranks (`_original_batch_size`).
    """
    if getattr(forward_batch, "codec_batch", None) is not None:
        return forward_batch.codec_batch.rows
    if (padding := getattr(forward_batch, "num_padding", None)) is not None:
        return forward_batch.batch_size - padding
    original = getattr(forward_batch, "_original_batch_size", None)
    return forward_batch.batch_size if original is None else original
