"""MIXED batches between a real prefill backend and codec: the same output, each part by its own."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from backend_bench import SHARED, Bench
from mixed_bench import MixedBench, Prompt
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

from sglang_codec.layer_groups import LayerGroup, LayerGroups
from sglang_codec.mixed_batches import serve_mixed_batches
from sglang_codec.patches.fallbacks import FALLBACKS
from sglang_codec.patches.forward_batch import ATTACHER
from sglang_codec.plan_maker import NoPlanError

ROWS = (5, 2, 7)
WHOLE = "a mixed batch is attended by the prefill backend: "


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FALLBACKS, "counts", type(FALLBACKS.counts)())
    monkeypatch.setattr(ATTACHER, "mixed_batches_are_served", False)


class Noting(TorchNativeAttnBackend):
    """Notes the rows of the batches that it is prepared for, and takes any call."""

    def __init__(self, runner: Any) -> None:
        super().__init__(runner)
        self.prepared: list[int] = []

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        self.prepared.append(forward_batch.batch_size)
        super().init_forward_metadata(forward_batch)

    def forward_extend(self, *args: Any, score_mod: Any = None, **more: Any) -> torch.Tensor:
        return super().forward_extend(*args, **more)


# to codec it is the stock one
Noting.__module__ = TorchNativeAttnBackend.__module__
Noting.__qualname__ = TorchNativeAttnBackend.__qualname__


def steps(bench: MixedBench, prompts: list[list[Prompt] | None]) -> Iterator[ForwardBatch]:
    """A step of the same rows for each entry: a decode step if that is empty, else MIXED.

    None is a step that looks like a prefill of these rows, with no prompt beside them.
    """
    lengths = [SHARED + 20 + 9 * row for row in ROWS]
    bench.start(lengths, ROWS)
    for beside in prompts:
        lengths = [length + 1 for length in lengths]
        batch = bench.mixed(beside or [], lengths, ROWS)
        if beside == []:
            batch.forward_mode, batch.extend_seq_lens_cpu = ForwardMode.DECODE, None
        yield batch


CHUNKS = [(1, 0, 13)], [(1, 13, 9)], [(1, 22, 1)]


def test_chunks_of_a_prompt_beside_rows_that_decode() -> None:
    """Also a chunk of a single token, which is no row that decodes."""
    bench = MixedBench(Noting)
    for batch in steps(bench, [*CHUNKS, [(3, 0, 4), (1, 23, 6)]]):
        bench.compare(batch)
    assert bench.prefill.prepared == [1, 1, 1, 2]
    totals = bench.backend.planner.totals
    assert (totals.steps, totals.plans, totals.kv_tokens_saved) == (4, 1, 4 * 2 * SHARED)
    assert not FALLBACKS.counts


def test_decode_steps_and_mixed_ones_share_a_plan() -> None:
    bench = MixedBench()
    for batch in steps(bench, [[], *CHUNKS, [], [(4, 0, 7)], []]):
        if batch.forward_mode.is_decode():
            bench.eager(batch)
        else:
            bench.compare(batch)
    assert (bench.backend.planner.totals.steps, bench.backend.planner.totals.plans) == (7, 1)


def test_attention_between_the_replayed_parts_of_a_prefill() -> None:
    """SGLang prepares with the scheduler's batch, and attends with one that says EXTEND."""
    bench = MixedBench()
    for batch in steps(bench, [*CHUNKS]):
        tokens = len(batch.input_ids)
        static = SimpleNamespace(forward_mode=ForwardMode.EXTEND, out_cache_loc=batch.out_cache_loc)
        place = static._attn_output = torch.full((tokens, 64), float("nan"))
        assert bench.compare(batch, static).data_ptr() == place.data_ptr()
    assert bench.backend.planner.totals.steps == 3


@pytest.mark.parametrize("padding", [1, 16])
def test_tokens_that_pad_for_other_ranks(padding: int) -> None:
    bench = MixedBench()
    for batch in steps(bench, [*CHUNKS]):
        bench.pad_tokens(batch, len(batch.input_ids) + padding)
        bench.compare(batch)
    assert bench.backend.planner.totals.plans == 1


def test_a_decode_batch_that_looks_like_a_prefill() -> None:
    """So SGLang lets a rank take part in the replay of a prefill of others."""
    bench = MixedBench(Noting)
    for batch in steps(bench, [[(1, 0, 13)], None]):
        batch.forward_mode = ForwardMode.EXTEND
        bench.compare(batch)
    assert bench.prefill.prepared == [1]
    assert (bench.backend.planner.totals.steps, bench.backend.planner.totals.plans) == (2, 1)
    assert not FALLBACKS.counts


def test_a_model_writes_no_keys_of_both_parts_by_itself() -> None:
    class Fusing(TorchNativeAttnBackend):
        def get_fused_kv_write_buffers(self, *_: Any) -> str:
            return "buffers"

    bench = MixedBench(Fusing)
    bench.mixed_batches._never = None
    mixed, alone = steps(bench, [*CHUNKS[:2]])
    bench.compare(mixed)
    assert bench.prefill.get_fused_kv_write_buffers(None, mixed) is None
    del alone.codec_batch
    bench.compare(alone)
    assert bench.prefill.get_fused_kv_write_buffers(None, alone) == "buffers"


def mark_second(layer: Any) -> None:
    if layer.layer_id == 1:
        layer.unheard_of = 1


def test_a_delegated_layer_decodes_on_its_delegate() -> None:
    bench = MixedBench(change_layer=mark_second)
    assert set(bench.backend.layers.delegated) == {1}
    decoded: list[ForwardBatch] = []
    bench.backend.ordinary = TorchNativeAttnBackend(bench.runner)
    decode = bench.backend.ordinary.forward_decode

    def noting(q: Any, k: Any, v: Any, layer: Any, batch: Any, *rest: Any, **more: Any) -> Any:
        decoded.append(batch)
        return decode(q, k, v, layer, batch, *rest, **more)

    bench.backend.ordinary.forward_decode = noting
    for batch in steps(bench, [*CHUNKS]):
        bench.compare(batch)
    assert [batch.batch_size for batch in decoded] == [3, 3, 3]
    assert not FALLBACKS.counts


def test_a_prefill_alone_is_the_stock_backends() -> None:
    bench = MixedBench()
    mixed, alone = steps(bench, [[(1, 0, 13)], [(1, 13, 9)]])
    bench.compare(mixed)
    alone.forward_mode = ForwardMode.EXTEND
    del alone.codec_batch
    bench.compare(alone)
    assert bench.backend.planner.totals.steps == 1
    assert not FALLBACKS.counts


def test_a_prefill_backend_that_is_not_known_gets_the_whole_batch() -> None:
    class Unknown(TorchNativeAttnBackend):
        """May read anything of a batch."""

    bench = MixedBench(Unknown)
    name = f"{__name__}.{Unknown.__qualname__}"
    assert served_whole(bench) == {WHOLE + f"{name} may need the whole batch": 2}


def test_rows_without_a_plan_are_left_to_the_prefill_backend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any) -> Any:
        raise NoPlanError

    bench = MixedBench()
    with monkeypatch.context() as patch:
        for maker in bench.backend.planner.makers:
            patch.setattr(maker, "make", fails)
        first, second, decode = steps(bench, [*CHUNKS[:2], []])
        bench.compare(first)
        bench.compare(second)
    assert dict(FALLBACKS.counts) == {WHOLE + "no plan was possible": 2}
    bench.eager(decode)


def test_a_batch_of_which_too_little_is_known_is_attended_whole() -> None:
    bench = MixedBench()
    for batch in steps(bench, [*CHUNKS[:2]]):
        batch.codec_batch.rows -= 1
        bench.compare(batch)
    assert list(FALLBACKS.counts.values()) == [2]


def served_whole(bench: MixedBench, passed: Any = None) -> dict[str, int]:
    """What was counted; the rows are planned again when they are decoded alone."""
    first, second, decode = steps(bench, [*CHUNKS[:2], []])
    bench.compare(first, passed=passed)
    bench.compare(second)
    counts = dict(FALLBACKS.counts)
    bench.eager(decode)
    return counts


def test_what_a_layer_first_passes_in_a_mixed_batch() -> None:
    """The batch is prepared again, whole, between two layers, for a backend that takes the call."""

    bench = MixedBench(Noting)
    counts = served_whole(bench, passed={1: {"score_mod": 1}})
    (reason,) = counts
    assert reason.startswith(WHOLE)
    assert "layer 1 passes score_mod" in reason
    assert counts == {reason: 2}
    # the prompt, all rows of that batch, and of the next
    assert bench.prefill.prepared == [1, 4, 4]


def test_a_layer_that_was_not_there_when_the_server_started() -> None:
    bench = MixedBench(q_heads=(4, 4, 4))
    # as if it were none of the model's modules
    bench.backend.serve(LayerGroups((LayerGroup(bench.shape, (0, 1)),), {}))
    for batch in steps(bench, [*CHUNKS[:2]]):
        bench.compare(batch)
    assert dict(FALLBACKS.counts) == {WHOLE + "layer 2 is not among the model's modules": 2}


def test_a_prefill_graph_that_holds_the_attention_is_counted() -> None:
    bench = MixedBench()
    first, second = steps(bench, [*CHUNKS[:2]])
    bench.prefill.init_forward_metadata(first)
    bench.prefill.init_forward_metadata_out_graph(second)
    counts = {WHOLE + "the prefill graph holds its attention": 1}
    assert dict(FALLBACKS.counts) == counts
    del second.codec_batch
    bench.prefill.init_forward_metadata_out_graph(second, in_capture=True)
    assert dict(FALLBACKS.counts) == counts


def test_only_a_hybrid_with_this_decode_backend_is_served() -> None:
    bench, other = Bench(), Bench()
    prefill = TorchNativeAttnBackend(bench.runner)
    hybrid = SimpleNamespace(prefill_backend=prefill, decode_backend=bench.backend)
    assert serve_mixed_batches(bench.backend, bench.backend) is None
    assert serve_mixed_batches(hybrid, other.backend) is None
    assert not ATTACHER.mixed_batches_are_served
    # a model with linear layers has a pair, and only its attention is the hybrid's
    pair = SimpleNamespace(full_attn_backend=hybrid, linear_attn_backend=SimpleNamespace())
    assert serve_mixed_batches(pair, bench.backend) is not None
    assert ATTACHER.mixed_batches_are_served
    assert "forward_extend" in vars(prefill)
