"""MIXED batches on SGLang's own pools, between a real prefill backend and codec's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from backend_bench import HEAD_DIM, KV_HEADS, SHARED, Batch, Bench
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

from sglang_codec.mixed_batches import MixedBatches, serve_mixed_batches

Prompt = tuple[int, int, int]


def mixed_batch(
    prompts: Sequence[tuple[int, int]], decoding: Sequence[int], signature: object = None
) -> ForwardBatch:
    """As SGLang's `init_new` makes it: `prompts` as (prefix, extend), rows that decode by length.

    Every entry of a tensor is another than its neighbours; KV slots count from 100.
    """
    prefixes = [prefix for prefix, _ in prompts] + [length - 1 for length in decoding]
    extends = [extend for _, extend in prompts] + [1] * len(decoding)
    lengths = [prefix + extend for prefix, extend in zip(prefixes, extends, strict=True)]
    tokens, rows = sum(extends), len(extends)
    starts = torch.tensor([0, *extends]).cumsum(0)[:-1]
    positions = [torch.arange(p, n) for p, n in zip(prefixes, lengths, strict=True)]
    batch = ForwardBatch(
        forward_mode=ForwardMode.MIXED,
        batch_size=rows,
        input_ids=torch.arange(tokens) + 500,
        req_pool_indices=torch.arange(rows) + 3,
        seq_lens=torch.tensor(lengths),
        out_cache_loc=torch.arange(tokens) + 100,
        seq_lens_sum=sum(lengths),
    )
    batch.seq_lens_cpu, batch.orig_seq_lens = batch.seq_lens.clone(), batch.seq_lens.clone()
    batch.positions = torch.cat(positions)
    batch.extend_num_tokens = tokens
    batch.extend_seq_lens = torch.tensor(extends, dtype=torch.int32)
    batch.extend_prefix_lens = torch.tensor(prefixes, dtype=torch.int32)
    batch.extend_start_loc = starts.to(torch.int32)
    batch.extend_seq_lens_cpu, batch.extend_prefix_lens_cpu = extends, prefixes
    batch.extend_logprob_start_lens_cpu = [0] * rows
    described = Batch(len(decoding), signature)
    described.prompts = len(prompts)
    batch.codec_batch = described
    return batch


class MixedBench(Bench):
    """A `Bench` whose decode backend stands beside a `torch_native` one in a hybrid."""

    def __init__(self, prefill: type[Any] = TorchNativeAttnBackend, **given: Any) -> None:
        super().__init__(**given)
        self.shape = self.backend.layers.groups[0].shape
        self.prefill = prefill(self.runner)
        hybrid = SimpleNamespace(prefill_backend=self.prefill, decode_backend=self.backend)
        mixed = serve_mixed_batches(hybrid, self.backend)
        assert mixed is not None
        self.mixed_batches: MixedBatches = mixed
        self.whole = TorchNativeAttnBackend(self.runner)

    def mixed(
        self, prompts: Sequence[Prompt], decoding: Sequence[int], rows: Sequence[int]
    ) -> ForwardBatch:
        """The next step of the requests at `rows`, beside prompts as (row, prefix, extend)."""
        extends = [(prefix, extend) for _, prefix, extend in prompts]
        batch = mixed_batch(extends, decoding, signature="a")
        batch.req_pool_indices = torch.tensor([*(row for row, _, _ in prompts), *rows])
        batch.out_cache_loc = self._slots(len(batch.out_cache_loc)).long()
        table, first = self.table.req_to_token, 0
        for row, prefix, extend in zip(
            batch.req_pool_indices.tolist(),
            batch.extend_prefix_lens_cpu,
            batch.extend_seq_lens_cpu,
            strict=True,
        ):
            if row not in rows and prefix > SHARED:
                table[row, SHARED:prefix] = self._slots(prefix - SHARED)
            table[row, prefix : prefix + extend] = batch.out_cache_loc[first : first + extend]
            first += extend
        return batch

    def pad_tokens(self, batch: ForwardBatch, tokens: int) -> None:
        """As SGLang does on a rank with fewer tokens than another; no one reads slot 0."""
        for name in ("input_ids", "positions", "out_cache_loc"):
            given = getattr(batch, name)
            setattr(batch, name, torch.cat([given, given.new_zeros(tokens - len(given))]))

    def compare(
        self,
        batch: ForwardBatch,
        static: Any = None,
        passed: Mapping[int, dict[str, Any]] | None = None,
    ) -> torch.Tensor:
        """Every layer, and the same by the stock backend alone; the last layer's output.

        Args:
            static: the batch that the layers get where SGLang replays the other parts of the model.
            passed: arguments of layers, by their ids, that do not change what they compute.
        """
        tokens, real = len(batch.input_ids), sum(batch.extend_seq_lens_cpu)
        stock = SimpleNamespace(**vars(batch))
        stock.out_cache_loc = batch.out_cache_loc[:real]
        self.prefill.init_forward_metadata(batch)
        self.whole.init_forward_metadata(stock)
        for layer in self.layers:
            heads = layer.tp_q_head_num
            wide = torch.randn(tokens, (heads + 2 * KV_HEADS) * HEAD_DIM)
            q, k, v = wide.split([heads * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM], 1)
            k, v = (one.reshape(tokens, KV_HEADS, HEAD_DIM) for one in (k, v))
            extra = (passed or {}).get(layer.layer_id, {})
            out = self.prefill.forward_extend(q, k, v, layer, static or batch, **extra)
            exact = self.whole.forward_extend(q[:real], k[:real], v[:real], layer, stock)
            assert out.shape == (tokens, heads * HEAD_DIM)
            torch.testing.assert_close(out[:real], exact, atol=1e-5, rtol=1e-5)
            assert not out[real:].any()
        return out
