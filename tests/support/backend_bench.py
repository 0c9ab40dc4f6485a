"""`CodecDecodeBackend` on SGLang's own pools and batches, without a scheduler or a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import build_replay_fb_view

from sglang_codec.backend import CodecDecodeBackend
from sglang_codec.config import CodecConfig
from sglang_codec.patches.replay_view import copy_codec_batch
from sglang_codec.planning.paths import RadixPaths
from sglang_codec.reference import decode_attention

Q_HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16
SHARED = 50


class Batch:
    """A `CodecBatch`: rows that share their first `SHARED` tokens."""

    def __init__(self, rows: int, signature: object = None) -> None:
        self.rows, self.signature, self.reads = rows, signature, 0

    def read(self) -> RadixPaths:
        self.reads += 1
        empty = np.zeros(0, np.int32)
        shares = self.rows > 1
        parent = np.array([-1], np.int32) if shares else empty
        end = np.array([SHARED], np.int32) if shares else empty
        return RadixPaths(parent, end, np.full(self.rows, 0 if shares else -1, np.int32))

    def moved_since(self, signature: object) -> None:
        return None


class Bench:
    """Pools of `max_rows` requests, and a decode backend over two layers.

    Args:
        q_heads: of each layer. change_layer: called with every layer before the backend sees it.
        ordinary: the stock backend for delegated layers. kv_dtype: of the KV pool.
        settings: server arguments; with `speculative_num_draft_tokens` the batches verify.
    """

    def __init__(
        self,
        max_rows: int = 8,
        *,
        q_heads: Sequence[int] = (Q_HEADS, Q_HEADS),
        change_layer: Callable[[RadixAttention], None] = lambda layer: None,
        ordinary: Any = None,
        kv_dtype: torch.dtype = torch.float32,
        exact_weights: bool = True,
        **settings: Any,
    ) -> None:
        self.table = ReqToTokenPool(max_rows, 512, "cpu", enable_memory_saver=False)
        self.pool = MHATokenToKVPool(
            size=2000,
            page_size=1,
            dtype=kv_dtype,
            head_num=KV_HEADS,
            head_dim=HEAD_DIM,
            layer_num=len(q_heads),
            device="cpu",
            enable_memory_saver=False,
        )
        for layer in range(len(q_heads)):
            for buffer in (self.pool.get_key_buffer(layer), self.pool.get_value_buffer(layer)):
                buffer.copy_(torch.randn(buffer.shape))
        self.layers = torch.nn.ModuleList(
            RadixAttention(heads, HEAD_DIM, HEAD_DIM**-0.5, KV_HEADS, layer)
            for layer, heads in enumerate(q_heads)
        )
        for layer in self.layers:
            change_layer(layer)
        self.new = settings.get("speculative_num_draft_tokens", 1)
        self.mode = ForwardMode.TARGET_VERIFY if self.new > 1 else ForwardMode.DECODE
        if self.new > 1:
            settings["speculative_algorithm"] = "EAGLE"
        arguments = SimpleNamespace(**settings)
        self.runner = SimpleNamespace(
            device="cpu",
            gpu_id=0,
            model=self.layers,
            model_config=SimpleNamespace(is_encoder_decoder=False),
            req_to_token_pool=self.table,
            token_to_kv_pool=self.pool,
            dtype=torch.float32,
            kv_cache_dtype=kv_dtype,
            server_args=arguments,
        )
        self.backend = CodecDecodeBackend(
            self.runner, CodecConfig(), lambda: ordinary, exact_weights=exact_weights
        )
        self.runner.attn_backend = self.backend
        self._next_slot = 1
        self.sinks: dict[int, torch.Tensor | None] = {}  # what layers pass, by their ids

    def start(self, lengths: Sequence[int], pool_rows: Sequence[int]) -> None:
        """Give the requests at `pool_rows` KV slots: the first `SHARED` are the same ones."""
        shared = self._slots(SHARED)
        for row, length in zip(pool_rows, lengths, strict=True):
            self.table.req_to_token[row, :SHARED] = shared
            self.table.req_to_token[row, SHARED:length] = self._slots(length - SHARED)
            # what lies behind must not be read
            self.table.req_to_token[row, length:] = -1

    def batch(
        self, lengths: Sequence[int], pool_rows: Sequence[int], codec_batch: Any
    ) -> ForwardBatch:
        """The next step of the requests: each gets slots for its newest tokens.

        `lengths` are SGLang's, which counts the token that is decoded, and none that is verified.
        """
        count = len(lengths)
        new = self._slots(count * self.new)
        for row, length, slots in zip(pool_rows, lengths, new.view(count, self.new), strict=True):
            first = length if self.new > 1 else length - 1
            self.table.req_to_token[row, first : first + self.new] = slots
        batch = ForwardBatch(
            forward_mode=self.mode,
            batch_size=count,
            input_ids=torch.zeros(count * self.new, dtype=torch.int64),
            req_pool_indices=torch.tensor(pool_rows, dtype=torch.int64),
            seq_lens=torch.tensor(lengths, dtype=torch.int64),
            out_cache_loc=new.long(),
            seq_lens_sum=sum(lengths),
        )
        batch.seq_lens_cpu = batch.seq_lens.clone()
        batch.positions = batch.seq_lens.repeat_interleave(self.new) - 1
        if codec_batch is not None:
            batch.codec_batch = codec_batch
        return batch

    def pad(self, batch: ForwardBatch, rows: int) -> None:
        """As `prepare_mlp_sync_batch` does on a rank with fewer requests than another."""
        batch._original_batch_size, batch.batch_size = batch.batch_size, rows
        batch._pad_inputs_to_size(self.runner, rows, rows)

    def view(self, batch: ForwardBatch, rows: int) -> Any:
        """What SGLang hands to the backend before it replays a graph of `rows` rows."""

        def padded(tensor: torch.Tensor, fill: int, each: int = 1) -> torch.Tensor:
            return torch.cat([tensor, tensor.new_full((rows * each - len(tensor),), fill)])

        buffers = SimpleNamespace(
            input_ids=padded(batch.input_ids, 0, self.new),
            positions=padded(batch.positions, 0, self.new),
            req_pool_indices=padded(batch.req_pool_indices, 0),
            seq_lens=padded(batch.seq_lens, 1),
            seq_lens_cpu=padded(batch.seq_lens.clone(), 1),
            mamba_track_indices=None,
        )
        view = build_replay_fb_view(
            forward_batch=batch,
            buffers=buffers,
            bs=rows,
            raw_bs=batch.batch_size,
            num_tokens=rows * self.new,
            global_num_tokens_cpu=None,
            seq_len_fill_value=1,
            capture_forward_mode=self.mode,
            is_encoder_decoder=False,
        )
        copy_codec_batch(view, batch)
        return view

    def replay(self, batch: ForwardBatch, rows: int) -> torch.Tensor:
        """A replay of a graph of `rows` rows: `out_graph` sees the view, the rest static inputs."""
        view = self.view(batch, rows)
        self.backend.init_forward_metadata_out_graph(view)
        slots = torch.zeros(rows * self.new, dtype=torch.int64)
        slots[: batch.batch_size * self.new] = batch.out_cache_loc
        static = SimpleNamespace(
            forward_mode=self.mode, seq_lens=view.seq_lens, out_cache_loc=slots
        )
        self.backend.init_forward_metadata_in_graph(static)
        return self.attend(static, rows, real=batch)

    def eager(self, batch: ForwardBatch) -> torch.Tensor:
        self.backend.init_forward_metadata(batch)
        return self.attend(batch, batch.batch_size, real=batch)

    def attend(
        self, batch: Any, rows: int, *, real: ForwardBatch, q: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run every layer, compare its real rows with the oracle; the last layer's output."""
        for layer in self.layers:
            if layer.layer_id in self.backend.layers.delegated:
                continue
            heads, tokens = layer.tp_q_head_num, rows * self.new
            given = torch.randn(tokens, heads * HEAD_DIM) if q is None else q
            k, v = torch.randn(2, tokens, KV_HEADS, HEAD_DIM)
            sinks = self.sinks.get(layer.layer_id)
            attend = self.backend.forward_decode if self.new == 1 else self.backend.forward_extend
            out = attend(given, k, v, layer, batch, sinks=sinks)
            assert out.shape == (tokens, heads * HEAD_DIM)
            self._check(given.reshape(tokens, heads, HEAD_DIM), out, layer, real)
        return out

    def _check(
        self, q: torch.Tensor, out: torch.Tensor, layer: RadixAttention, batch: ForwardBatch
    ) -> None:
        count = getattr(batch, "_original_batch_size", None)
        count = batch.batch_size if count is None else count
        rows = [
            self.table.req_to_token[row, : length + nth]
            for row, length in zip(
                batch.req_pool_indices[:count].tolist(),
                batch.seq_lens[:count].tolist(),
                strict=True,
            )
            for nth in (range(1, self.new + 1) if self.new > 1 else (0,))
        ]
        count *= self.new
        exact, _ = decode_attention(
            q[:count],
            self.pool.get_key_buffer(layer.layer_id),
            self.pool.get_value_buffer(layer.layer_id),
            rows,
            layer.scaling,
            soft_cap=layer.logit_cap or None,
            sinks=self.sinks.get(layer.layer_id),
            k_scale=layer.k_scale_float or 1.0,
            v_scale=layer.v_scale_float or 1.0,
        )
        got = out[:count].view(count, layer.tp_q_head_num, HEAD_DIM).double()
        torch.testing.assert_close(got, exact, atol=1e-5, rtol=1e-5)

    def _slots(self, count: int) -> torch.Tensor:
        first, self._next_slot = self._next_slot, self._next_slot + count
        return torch.arange(first, first + count, dtype=torch.int32)
