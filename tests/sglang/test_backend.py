"""The backend as SGLang drives it: padded and unpadded batches, idle ranks, micro-batches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from backend_bench import SHARED, Batch, Bench
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from sglang_codec import served_group
from sglang_codec.batch_planner import Totals
from sglang_codec.kernels.launch import LaunchConfig
from sglang_codec.patches.fallbacks import FALLBACKS
from sglang_codec.refusals import UnsupportedConfiguration

ROWS = (5, 2, 7)  # places in the request pool


def steps(bench: Bench, signature: str = "a", rows: tuple[int, ...] = ROWS):
    """Decode batches of the same requests, step by step."""
    lengths = [SHARED + 20 + 9 * row for row in rows]
    bench.start(lengths, rows)
    while True:
        lengths = [length + 1 for length in lengths]
        yield bench.batch(lengths, rows, Batch(len(rows), signature))


def test_an_eager_batch() -> None:
    bench = Bench()
    for batch, _ in zip(steps(bench), range(3), strict=False):
        bench.eager(batch)
    assert bench.backend.planner.totals.plans == 1
    assert bench.backend.planner.totals.kv_tokens_saved == 3 * 2 * SHARED


def test_steps_that_outgrow_the_graphs_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    graphs = SimpleNamespace(decode=SimpleNamespace(backend="full", bs=[1, len(ROWS) - 1]))
    bench = Bench(cuda_graph_config=graphs)
    for batch, _ in zip(steps(bench), range(3), strict=False):
        bench.eager(batch)
    [said] = [message for message in caplog.messages if "CUDA graph" in message]
    assert "3 requests decode at once, and the largest CUDA graph holds 2" in said


@pytest.mark.parametrize("exact_weights", [True, False])
def test_launches_weigh_as_exactly_as_they_are_asked_to(
    exact_weights: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend, asked = served_group.prefix_shared_attention, []

    def watched(*given: Any, config: LaunchConfig, **of_layer: Any) -> None:
        asked.append(config.exact_weights)
        attend(*given, config=config, **of_layer)

    monkeypatch.setattr(served_group, "prefix_shared_attention", watched)
    bench = Bench(exact_weights=exact_weights)
    bench.eager(next(steps(bench)))
    assert asked == [exact_weights] * 2  # layers


@pytest.mark.parametrize("padded", [4, 8, 9, 40])  # the request pool has 9 rows
def test_an_eager_batch_that_is_padded_for_other_ranks(padded: int) -> None:
    bench = Bench()
    for batch, _ in zip(steps(bench), range(2), strict=False):
        bench.pad(batch, padded)
        out = bench.eager(batch)
        assert not out[len(ROWS) :].any()
    totals = bench.backend.planner.totals
    assert (totals.steps, totals.plans, totals.kv_tokens_saved) == (2, 1, 2 * 2 * SHARED)


@pytest.mark.parametrize("padded", [3, 4, 8, 9, 40])
def test_a_replayed_batch(padded: int) -> None:
    bench = Bench()
    for batch, _ in zip(steps(bench), range(2), strict=False):
        out = bench.replay(batch, padded)
        assert not out[len(ROWS) :].any()
    totals = bench.backend.planner.totals
    assert (totals.steps, totals.plans, totals.kv_tokens_saved) == (2, 1, 2 * 2 * SHARED)


def test_replayed_and_eager_steps_share_a_plan() -> None:
    """A batch leaves the captured sizes when a request joins, and comes back."""
    bench = Bench()
    series = steps(bench)
    bench.replay(next(series), 4)
    bench.eager(next(series))
    bench.replay(next(series), 8)
    assert bench.backend.planner.totals.plans == 1


def test_a_padded_batch_of_which_nothing_is_known_is_planned_without_its_padding() -> None:
    for serve in (lambda bench, batch: bench.replay(batch, 8), eager_padded):
        bench = Bench()
        batch = next(steps(bench))
        batch.codec_batch = None
        serve(bench, batch)
        assert len(bench.backend.planner.first.packed.max_lengths) == len(ROWS)
        assert bench.backend.planner.totals.kv_tokens_stock == int(batch.seq_lens[:3].sum())


def eager_padded(bench: Bench, batch: object) -> None:
    bench.pad(batch, 8)
    bench.eager(batch)


@pytest.mark.parametrize("rows", [4, 9, 16])
def test_capture_of_any_size(rows: int) -> None:
    """Capture sizes are rounded up to the attention-TP size: more rows than the pool has."""
    bench = Bench()
    bench.backend.init_cuda_graph_state(rows, rows)
    batch = bench.batch([1], [0], None)
    bench.pad(batch, rows)
    del batch._original_batch_size
    bench.backend.init_forward_metadata_out_graph(batch, in_capture=True)
    bench.backend.init_forward_metadata_in_graph(batch)
    for layer in bench.layers:
        q, k, v = torch.randn(rows, 64), *torch.randn(2, rows, 2, 16)
        assert bench.backend.forward_decode(q, k, v, layer, batch).isfinite().all()
    assert bench.backend.planner.totals == Totals()


def test_idle_ranks_serve_no_one() -> None:
    bench = Bench()
    idle = bench.batch([], [], None)
    idle.forward_mode = ForwardMode.IDLE
    bench.backend.init_forward_metadata(idle)
    assert bench.backend.planner.first is None
    view = bench.view(idle, 4)
    assert view.actual_forward_mode.is_idle()
    bench.backend.init_forward_metadata_out_graph(view)
    bench.replay(idle, 4)
    assert bench.backend.planner.totals == Totals()
    bench.pad(idle, 4)
    bench.backend.init_forward_metadata(idle)
    assert bench.backend.planner.totals == Totals()
    bench.eager(next(steps(bench)))
    assert bench.backend.planner.totals.steps == 1


def test_micro_batches_keep_their_plans() -> None:
    """Two batches take turns, as in a pipeline of two stages: each is planned once."""
    bench = Bench(pp_size=2)
    left, right = Batch(3, "left"), Batch(4, "right")
    at_left, at_right = [70, 90, 52], [60, 75, 99, 130]
    bench.start(at_left, (1, 2, 5))
    bench.start(at_right, (3, 4, 6, 8))
    for step in range(1, 6):
        bench.eager(bench.batch([n + step for n in at_left], (1, 2, 5), left))
        bench.replay(bench.batch([n + step for n in at_right], (3, 4, 6, 8), right), 6)
    assert (left.reads, right.reads) == (1, 1)
    totals = bench.backend.planner.totals
    assert (totals.steps, totals.plans, totals.plans_reused) == (10, 2, 8)
    assert totals.kv_tokens_saved == 5 * (2 * SHARED + 3 * SHARED)


def test_without_a_pipeline_one_plan_is_kept() -> None:
    bench = Bench()
    left, right = Batch(2, "left"), Batch(1, "right")
    bench.start([70, 90], (1, 2))
    bench.start([60], (3,))
    for step in (1, 2):
        bench.eager(bench.batch([70 + step, 90 + step], (1, 2), left))
        bench.eager(bench.batch([60 + step], (3,), right))
    assert bench.backend.planner.totals.plans == 4


@pytest.mark.parametrize("shape", [(3, 64), (3, 4, 16), (1, 3, 4, 16), (1, 3, 64)])
def test_queries_in_any_shape(shape: tuple[int, ...]) -> None:
    bench = Bench()
    batch = next(steps(bench))
    bench.backend.init_forward_metadata(batch)
    bench.attend(batch, 3, real=batch, q=torch.randn(shape))


def test_queries_and_values_that_are_parts_of_a_wider_tensor() -> None:
    bench = Bench()
    batch = next(steps(bench))
    bench.backend.init_forward_metadata(batch)
    wide = torch.randn(3, 64 + 32 + 40 + 32)
    q, k, _, v = wide.split([64, 32, 40, 32], 1)
    for layer in bench.layers:
        # K and V with the strides of their own that a model's views give them
        separate = torch.randn(3, 2, 24)[..., :16]
        out = bench.backend.forward_decode(q, k, separate, layer, batch)
        bench._check(q.reshape(3, 4, 16), out, layer, batch)
        out = bench.backend.forward_decode(q, k.view(1, 3, 2, 16), v, layer, batch)
        bench._check(q.reshape(3, 4, 16), out, layer, batch)


def test_fewer_queries_than_planned_rows_are_refused() -> None:
    bench = Bench()
    batch = next(steps(bench))
    bench.backend.init_forward_metadata(batch)
    k, v = torch.randn(2, 3, 2, 16)
    with pytest.raises(ValueError, match="q has 2 rows, but the plan is for 3"):
        bench.backend.forward_decode(torch.randn(2, 64), k, v, bench.layers[0], batch)


def test_layers_of_two_shapes_have_their_own_plans_of_one_tree() -> None:
    bench = Bench(q_heads=(4, 8, 8))
    assert [one.group.layer_ids for one in bench.backend.groups] == [(1, 2), (0,)]
    batch, other = Batch(3, "a"), Batch(3, "b")
    bench.start([70, 90, 52], (1, 2, 5))
    bench.eager(bench.batch([71, 91, 53], (1, 2, 5), batch))
    bench.replay(bench.batch([72, 92, 54], (1, 2, 5), batch), 4)
    bench.start([80, 66, 99], (3, 4, 6))
    bench.eager(bench.batch([81, 67, 100], (3, 4, 6), other))
    totals = bench.backend.planner.totals
    assert (batch.reads, other.reads, totals.plans, totals.steps) == (1, 1, 2, 3)
    assert totals.kv_tokens_saved == 3 * 2 * SHARED
    assert len(bench.backend.planner.made) == 2


def test_two_shapes_of_micro_batches_come_back_with_grown_tails() -> None:
    bench = Bench(q_heads=(4, 2), pp_size=2)
    left, right = Batch(3, "left"), Batch(2, "right")
    bench.start([70, 90, 52], (1, 2, 5))
    bench.start([60, 75], (3, 4))
    for step in range(1, 4):
        bench.eager(bench.batch([n + step for n in (70, 90, 52)], (1, 2, 5), left))
        bench.replay(bench.batch([n + step for n in (60, 75)], (3, 4), right), 4)
    assert (left.reads, right.reads) == (1, 1)


def test_a_group_that_a_first_step_empties_is_no_longer_planned() -> None:
    stock = object()
    bench = Bench(q_heads=(4, 8, 8), ordinary=stock)
    largest, _ = bench.backend.groups
    reasons = dict.fromkeys((0, 2), "passes score_mod")
    bench.backend.serve(bench.backend.layers.without(reasons))
    assert bench.backend.groups == (largest,)
    assert largest.group.layer_ids == (1,)
    assert bench.backend.ordinary is stock
    bench.backend.ordinary = None
    batch = next(steps(bench))
    bench.eager(batch)
    assert len(bench.backend.planner.made) == 1


def test_a_layer_may_pass_sinks_in_one_step_and_none_in_another() -> None:
    bench = Bench()
    series, drawn = steps(bench), 3 * torch.randn(2, 4)
    for sinks in (None, *drawn, None, drawn[0].bfloat16()):
        bench.sinks = {0: sinks, 1: drawn[1]}
        bench.eager(next(series))
        bench.replay(next(series), 4)
    assert len(bench.backend.groups) == 1


def test_layers_with_caps_beside_others() -> None:
    def cap(layer: RadixAttention) -> None:
        layer.logit_cap = (0.0, 2.0, 0.5)[layer.layer_id]

    bench = Bench(q_heads=(4, 4, 4), change_layer=cap)
    bench.sinks = {1: torch.randn(4)}
    for batch, _ in zip(steps(bench), range(2), strict=False):
        bench.replay(batch, 4)
    assert len(bench.backend.groups) == 3


@pytest.mark.parametrize("kv_dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_an_fp8_pool_and_the_scales_of_each_layer(kv_dtype: torch.dtype) -> None:
    """SGLang's own write divides by them, and the oracle multiplies what the pool then holds."""

    def scale(layer: RadixAttention) -> None:
        if layer.layer_id > 0:
            layer.k_scale_float, layer.v_scale_float = 0.25, 1.5 * layer.layer_id
            layer.k_scale, layer.v_scale = torch.tensor(0.25), torch.tensor(1.5 * layer.layer_id)
        layer.logit_cap = 2.0 * (layer.layer_id == 2)

    bench = Bench(q_heads=(4, 4, 4), change_layer=scale, kv_dtype=kv_dtype)
    bench.sinks = {1: torch.randn(4)}
    for batch, nth in zip(steps(bench), range(2), strict=False):
        bench.eager(batch)
        FALLBACKS.counts.clear()
        bench.layers[1].v_scale_float = 0.7  # weights may be loaded again
        bench.replay(batch, 4)
        assert sum("fp8 scales are others" in why for why in FALLBACKS.counts) == (nth == 0)
    assert [str(one.group.shape) for one in bench.backend.groups] == [
        f"4/2 heads of 16, float32 over {str(kv_dtype)[6:]}{cap}" for cap in ("", ", capped at 2")
    ]


def test_a_layer_that_nobody_knew_of_is_refused_by_name() -> None:
    bench = Bench()
    batch = next(steps(bench))
    bench.backend.init_forward_metadata(batch)
    unknown = type(bench.layers[0])(4, 16, 1.0, 2, 7)
    k, v = torch.randn(2, 3, 2, 16)
    with pytest.raises(UnsupportedConfiguration, match="layer 7 attends, but was not among"):
        bench.backend.forward_decode(torch.randn(3, 64), k, v, unknown, batch)
