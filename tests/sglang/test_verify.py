"""Steps that verify, as SGLang drives them: drafts accepted or not, lengths known or not."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from backend_bench import SHARED, Batch, Bench
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend, SharedReadEnds
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from sglang_codec.batch_planner import Totals
from sglang_codec.patches.fallbacks import FALLBACKS
from sglang_codec.served_group import STEPS, tail_headroom

ROWS = (5, 2, 7)  # places in the request pool
# what the host knows of lengths
HOST = {"knows": {}, "lags": {"lag": True}, "is told of room": {"lag": True, "room": 64}}


def bench(n: int, **more: Any) -> Bench:
    return Bench(speculative_num_draft_tokens=n, **more)


def steps(of: Bench, *, lag: bool = False, room: int | None = None, seed: int = 0):
    """Verified batches of the same requests; a random number of new tokens stays each time.

    Under `lag` the host knows what it knew a step before. With `room` it is told of so many tokens
    more, as DFLASH does, in the first step.
    """
    accepts, known = random.Random(seed), [SHARED + 20 + 9 * row for row in ROWS]
    of.start(known, ROWS)
    lengths, told = list(known), None if room is None else torch.tensor(known) + room
    while True:
        described = Batch(len(ROWS), "a")
        batch = of.batch(lengths, ROWS, described)
        if lag:
            described.least_lengths = np.array(known, np.int32)
            batch.seq_lens_cpu = told
        yield batch
        known, lengths = lengths, [length + accepts.randint(1, of.new) for length in lengths]


@pytest.mark.parametrize("host", HOST)
@pytest.mark.parametrize("n", [2, 3, 16])
def test_each_row_sees_what_is_before_it(n: int, host: str) -> None:
    FALLBACKS.counts.clear()
    of = bench(n)
    for batch, nth in zip(steps(of, **HOST[host]), range(4), strict=False):
        of.eager(batch) if nth % 2 else of.replay(batch, 3 + nth)
    totals = of.backend.planner.totals
    assert (totals.steps, totals.plans) == (4, 1)
    # sixteen rows of a request share too little here to be read together
    assert totals.kv_tokens_saved >= (4 * SHARED if n < 4 else 0)
    assert FALLBACKS.counts == {}


@pytest.mark.parametrize("host", HOST)
@pytest.mark.parametrize("n", [2, 4, 16])
def test_a_plan_serves_many_steps_whatever_is_accepted(n: int, host: str) -> None:
    class All(random.Random):
        def randint(self, low: int, high: int) -> int:
            return high

    of = bench(n)
    random_class, random.Random = random.Random, All
    try:
        for batch, _ in zip(steps(of, **HOST[host]), range(STEPS), strict=False):
            of.backend.init_forward_metadata(batch)
    finally:
        random.Random = random_class
    assert of.backend.planner.totals.plans == 1
    assert tail_headroom(1) == tail_headroom(4) < tail_headroom(16)


@pytest.mark.parametrize("padded", [3, 4, 9, 40])
def test_padding_becomes_zero(padded: int) -> None:
    of = bench(4)
    for batch, _ in zip(steps(of, lag=True), range(2), strict=False):
        assert not of.replay(batch, padded)[len(ROWS) * 4 :].any()


@pytest.mark.parametrize("rows", [1, 4, 9, 16])
def test_capture_of_any_size(rows: int) -> None:
    of = bench(4)
    of.backend.max_context_len = 256
    of.backend.init_cuda_graph_state(rows, rows * 4)
    assert of.backend.verify_mask.fits(rows)
    assert not of.backend.verify_mask.is_read
    batch = SimpleNamespace(
        forward_mode=ForwardMode.TARGET_VERIFY,
        batch_size=rows,
        seq_lens=torch.ones(rows, dtype=torch.int64),
        seq_lens_cpu=torch.ones(rows, dtype=torch.int64),
        req_pool_indices=torch.zeros(rows, dtype=torch.int64),
        out_cache_loc=torch.zeros(rows * 4, dtype=torch.int64),
    )
    of.backend.init_forward_metadata_out_graph(batch, in_capture=True)
    of.backend.init_forward_metadata_in_graph(batch)
    for layer in of.layers:
        q, k, v = torch.randn(rows * 4, 64), *torch.randn(2, rows * 4, 2, 16)
        assert of.backend.forward_extend(q, k, v, layer, batch).isfinite().all()
    assert of.backend.planner.totals == Totals()


def test_an_idle_rank_replays_what_others_verify() -> None:
    of = bench(4)
    idle = of.batch([], [], None)
    idle.forward_mode, idle.seq_lens_cpu = ForwardMode.IDLE, None
    of.replay(idle, 4)
    of.backend.init_forward_metadata(idle)
    assert of.backend.planner.totals == Totals()
    assert FALLBACKS.counts["sequence lengths only on the device (a synchronisation)"] == 0


def test_lengths_that_no_one_knows_are_waited_for_and_counted() -> None:
    of = bench(3)
    FALLBACKS.counts.clear()
    batch = next(steps(of, lag=True))
    batch.codec_batch.least_lengths = None
    of.eager(batch)
    assert FALLBACKS.counts["sequence lengths only on the device (a synchronisation)"] == 1


def test_a_row_near_the_end_of_the_table_is_gathered_within_it() -> None:
    of = bench(4, max_rows=8)
    width = of.table.req_to_token.shape[1]
    of.start([width - 5], (8,))
    described = Batch(1, "a")
    described.least_lengths = np.array([width - 5], np.int32)
    batch = of.batch([width - 5], (8,), described)
    batch.seq_lens_cpu = None
    of.eager(batch)
    assert of.backend.planner._live[-1].lengths.most.tolist() == [width]


def test_a_batch_that_decodes_beside_speculation_is_the_stock_backends() -> None:
    stock = MagicMock(spec=AttentionBackend)
    of = bench(4, ordinary=stock)
    batch = next(steps(of))
    batch.forward_mode = ForwardMode.DECODE
    of.backend.init_forward_metadata(batch)
    of.backend.init_forward_metadata_out_graph(batch)
    of.backend.init_forward_metadata_in_graph(batch)
    of.backend.forward_decode("q", "k", "v", of.layers[0], batch)
    stock.init_forward_metadata.assert_called_once_with(batch)
    stock.init_forward_metadata_out_graph.assert_called_once_with(batch, in_capture=False)
    stock.init_forward_metadata_in_graph.assert_called_once_with(batch)
    stock.forward_decode.assert_called_once_with("q", "k", "v", of.layers[0], batch, True)
    assert of.backend.planner.totals == Totals()


def test_who_reads_scheduler_owned_tables_when() -> None:
    decodes, verifies = Bench().backend, bench(4).backend
    for backend, own in (
        (decodes, ForwardMode.DECODE),
        (verifies, ForwardMode.TARGET_VERIFY),
    ):
        assert backend.shared_read_ends(own) is SharedReadEnds.PRE_REPLAY
        assert backend.shared_read_ends(ForwardMode.EXTEND) is SharedReadEnds.UNKNOWN
    assert decodes.needs_cpu_seq_lens
    assert not verifies.needs_cpu_seq_lens


def test_codec_prefills_nothing() -> None:
    batch = SimpleNamespace(forward_mode=ForwardMode.EXTEND)
    with pytest.raises(RuntimeError, match="--prefill-attention-backend"):
        bench(4).backend.forward_extend(None, None, None, None, batch)
