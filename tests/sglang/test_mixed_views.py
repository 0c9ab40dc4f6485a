"""A MIXED batch is cut into two batches that are whole in themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_bench import mixed_batch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

from sglang_codec.mixed_views import cut, holds_decoding_rows, why_not_cut

PROMPTS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=5)
DECODING = st.lists(st.integers(2, 40), min_size=1, max_size=7)
OF_ROWS = ("req_pool_indices", "seq_lens", "seq_lens_cpu", "extend_seq_lens", "extend_prefix_lens")
OF_TOKENS = ("input_ids", "positions", "out_cache_loc")


@settings(deadline=None, max_examples=60)
@given(PROMPTS, DECODING, st.integers(0, 9))
def test_the_parts_are_the_whole(
    prompts: list[tuple[int, int]], decoding: list[int], padding: int
) -> None:
    batch = mixed_batch(prompts, decoding)
    real = sum(batch.extend_seq_lens_cpu)
    for name in OF_TOKENS:
        setattr(batch, name, torch.nn.functional.pad(getattr(batch, name), (0, padding)))
    before = copy.copy(vars(batch))
    assert why_not_cut(batch) is None
    views = cut(batch)
    assert all(vars(batch)[name] is value for name, value in before.items())
    assert (views.prompt_tokens, views.tokens) == (sum(n for _, n in prompts), real)
    for name in OF_ROWS:
        parts = [getattr(views.prompts, name), getattr(views.decode, name)]
        assert torch.cat(parts).equal(getattr(batch, name)), name
    for name in OF_TOKENS:
        parts = [getattr(views.prompts, name), getattr(views.decode, name)]
        assert torch.cat(parts).equal(getattr(batch, name)[:real]), name


@settings(deadline=None, max_examples=60)
@given(PROMPTS, DECODING)
def test_each_part_agrees_with_itself(prompts: list[tuple[int, int]], decoding: list[int]) -> None:
    views = cut(mixed_batch(prompts, decoding))
    assert views.prompts.forward_mode == ForwardMode.EXTEND
    assert views.decode.forward_mode == ForwardMode.DECODE
    # a part is no MIXED batch to whoever asks
    assert not holds_decoding_rows(views.prompts)
    assert views.decode.codec_batch.rows == views.decode.batch_size == len(decoding)
    for part, tokens in ((views.prompts, views.prompt_tokens), (views.decode, len(decoding))):
        rows = part.batch_size
        assert rows == len(part.seq_lens) == len(part.extend_seq_lens_cpu)
        assert len(part.out_cache_loc) == len(part.positions) == tokens
        assert part.extend_seq_lens_cpu == part.extend_seq_lens.tolist()
        assert part.extend_prefix_lens_cpu == part.extend_prefix_lens.tolist()
        assert part.seq_lens_sum == part.seq_lens.sum() == part.seq_lens_cpu.sum()
        assert sum(part.extend_seq_lens_cpu) == tokens
        assert part.extend_prefix_lens.add(part.extend_seq_lens).equal(part.seq_lens)
    assert views.prompts.extend_num_tokens == views.prompt_tokens
    assert views.decode.positions.equal(views.decode.seq_lens - 1)


def test_tensors_of_the_decoding_part_begin_where_kernels_expect_it() -> None:
    decode = cut(mixed_batch([(0, 3)], [5, 6])).decode
    for name in ("req_pool_indices", "seq_lens", "out_cache_loc"):
        assert getattr(decode, name).storage_offset() == 0


def test_the_slots_of_window_layers_are_looked_up_for_the_part() -> None:
    """SGLang 0.5.23 keeps them in a plan of the scheduler's step, by columns."""
    batch = mixed_batch([(0, 3), (4, 2)], [5, 6])
    asked: list[Any] = []
    batch.kv_loc_plan = SimpleNamespace(cols_slice=lambda cols, tokens: asked.append(tokens))
    batch.kv_loc_cols = None
    cut(batch)
    assert asked == [slice(0, 5), slice(5, 7)]


def change(**values: Any) -> Callable[[ForwardBatch], None]:
    return lambda batch: vars(batch).update(values)


def two_tokens(batch: ForwardBatch) -> None:
    batch.extend_seq_lens_cpu = [*batch.extend_seq_lens_cpu[:-1], 2]


@pytest.mark.parametrize(
    ("alter", "reason"),
    [
        (change(extend_seq_lens_cpu=None), "only on the device"),
        (change(seq_lens_cpu=None), "only on the device"),
        (change(batch_size=5), "other rows"),
        (two_tokens, "several tokens"),
        (change(input_ids=None), "other tokens"),
        (change(input_ids=torch.zeros(6)), "other tokens"),
        (change(spec_info=object()), "drafts"),
        (change(encoder_lens=torch.zeros(4)), "encoder"),
        (change(mm_inputs=[None, object(), None, None]), "images"),
    ],
)
def test_what_cannot_be_cut_has_a_reason(
    alter: Callable[[ForwardBatch], None], reason: str
) -> None:
    batch = mixed_batch([(0, 3), (4, 2)], [5, 6])
    assert why_not_cut(batch) is None
    alter(batch)
    assert reason in why_not_cut(batch)


def test_texts_of_a_model_that_sees_are_cut() -> None:
    batch = mixed_batch([(0, 3)], [5])
    batch.mm_inputs = [None, None]
    assert why_not_cut(batch) is None


def test_what_the_scheduler_did_not_describe_holds_no_decoding_rows() -> None:
    assert holds_decoding_rows(mixed_batch([(0, 3)], [5]))
    for batch in (SimpleNamespace(), SimpleNamespace(codec_batch=None)):
        assert not holds_decoding_rows(batch)
