"""Arguments that only a call shows are found before the first request, without CUDA graphs too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from warm_python import run_probe

from sglang_codec.attention_shape import AttentionShape
from sglang_codec.layer_groups import LayerGroup, LayerGroups, check_arguments
from sglang_codec.patches.eager_start import EagerStart
from sglang_codec.refusals import UnsupportedConfiguration
from sglang_codec.step_probe import see_a_step


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_probe("arguments_probe", tmp_path_factory.mktemp("arguments"))[0]


def test_a_layer_that_passes_more_is_delegated_before_serving(report: dict[str, Any]) -> None:
    assert report["delegated"] == {"1": "passes score_mod"}
    assert report["calls_at_start"] == 0


def test_the_stock_backend_gets_the_argument_and_no_other_layer(report: dict[str, Any]) -> None:
    assert report["calls"] == [[1, True]]


def test_tokens_are_those_of_the_stock_backend(report: dict[str, Any]) -> None:
    assert report["outputs"] == report["stock"]
    assert len({tuple(ids) for ids in report["outputs"]}) > 1


def test_nothing_left_to_serve_is_refused_with_the_reason(report: dict[str, Any]) -> None:
    unreached, everywhere = report["refusals"]
    assert "HybridAttnBackend decodes this model's attention layers itself" in unreached
    assert "none of the model's 2 attention layers can use codec (passes score_mod)" in everywhere


class Backend:
    """A decode backend that has no arguments beyond the usual ones."""

    def __init__(self, query_rows: int = 1) -> None:
        self.query_rows = query_rows
        self.layers = LayerGroups((LayerGroup(AttentionShape.plain(4, 2, 64), (3, 5)),), {})
        self.got: list[Any] = []

    def forward_decode(self, q: Any, k: Any, v: Any, layer: Any, *args: Any, **more: Any) -> None:
        self.got.append((layer.layer_id, args, more))

    forward_extend = forward_decode


class EagerRunner:
    """Runs `step` where SGLang runs a dummy batch."""

    attn_tp_size = 2

    def __init__(self, step: Any, *, is_generation: bool = True) -> None:
        self.model_runner = SimpleNamespace(is_generation=is_generation, canary_manager=None)
        self.step, self.rows = step, []

    def _alloc_dummy_decode_buffers(self, rows: int, *, num_tokens_per_req: int) -> str:
        return f"buffers for {rows} of {num_tokens_per_req}"

    def _dummy_run(self, rows: int, run_ctx: Any, *, buffers: str) -> None:
        self.rows.append((rows, run_ctx, buffers))
        self.step()


def test_unknown_arguments_are_left_out_and_named() -> None:
    backend = Backend()
    backend.layers.delegated[7] = "sliding window of 8 tokens"
    layers = {number: SimpleNamespace(layer_id=number) for number in (3, 7)}

    def step() -> None:
        for one in layers.values():
            backend.forward_decode(1, 2, 3, one, "batch", False, score_mod=4, return_lse=False)

    runner = EagerRunner(step)
    seen = see_a_step(runner, backend)
    assert seen is not None
    assert (seen.reached, seen.reasons) == ({3, 7}, {3: "passes score_mod"})
    stock = (7, ("batch", False), {"score_mod": 4, "return_lse": False})
    assert backend.got == [(3, ("batch", False), {}), stock]
    # one row for each rank of an attention group, and afterwards the backend is as before
    assert runner.rows == [(2, None, "buffers for 2 of 1")]
    assert "forward_decode" not in vars(backend)


def test_a_server_that_speculates_tries_a_step_that_verifies() -> None:
    backend, hidden = Backend(query_rows=4), SimpleNamespace(layer_id=9, tp_q_head_num=4)
    hidden.v_head_dim, out = 64, []

    def step() -> None:
        backend.forward_extend(1, 2, 3, SimpleNamespace(layer_id=5), "batch", score_mod=1)
        batch = SimpleNamespace(batch_size=2)
        out.append(backend.forward_extend(torch.ones(8, 4, 64), 2, 3, hidden, batch))

    runner = EagerRunner(step)
    seen = see_a_step(runner, backend)
    assert seen is not None
    assert seen.reasons == {5: "passes score_mod", 9: "is not among the model's modules"}
    assert backend.got == [(5, ("batch", True), {})]
    assert out[0].shape == (8, 4 * 64)
    assert runner.rows == [(2, None, "buffers for 2 of 4")]
    assert "forward_extend" not in vars(backend)


def test_sinks_are_passed_on() -> None:
    backend, sinks = Backend(), torch.zeros(4)
    layer = SimpleNamespace(layer_id=3, tp_q_head_num=4)
    seen = see_a_step(
        EagerRunner(lambda: backend.forward_decode(1, 2, 3, layer, "batch", sinks=sinks)), backend
    )
    assert (seen.reached, seen.reasons) == ({3}, {})
    assert backend.got == [(3, ("batch", True), {"sinks": sinks})]


def test_a_step_that_fails_without_the_arguments_names_them() -> None:
    backend = Backend()

    def step() -> None:
        _out, _lse = backend.forward_decode(
            1, 2, 3, SimpleNamespace(layer_id=5), "batch", return_lse=True
        )

    with pytest.raises(UnsupportedConfiguration, match="layer 5 passes return_lse"):
        see_a_step(EagerRunner(step), backend)
    assert "forward_decode" not in vars(backend)


def test_a_model_that_cannot_run_a_dummy_step_starts(caplog: pytest.LogCaptureFixture) -> None:
    def step() -> None:
        raise AttributeError("no dummy images")

    assert see_a_step(EagerRunner(step), Backend()) is None
    assert "no decode step could be tried" in caplog.text


def test_a_model_that_does_not_decode_is_not_asked() -> None:
    runner = EagerRunner(None, is_generation=False)
    assert see_a_step(runner, Backend()) is None
    assert runner.rows == []


def test_only_the_runner_of_the_backend_looks_and_once() -> None:
    start, ours, seen = EagerStart(), object(), []
    start.use(ours, seen.append)
    start(None, "a draft worker's", object())
    start(None, "a joiner's", ours, run_warmup=False)
    assert not start.done
    start(None, "ours", ours)
    start(None, "built again", ours)
    assert seen == ["ours"]
    assert start.done


def test_a_layer_that_was_not_found_is_named_and_its_step_goes_on() -> None:
    backend, hidden = Backend(), SimpleNamespace(layer_id=9, tp_q_head_num=4, v_head_dim=64)
    batch, out = SimpleNamespace(batch_size=2), []

    def step() -> None:
        out.append(backend.forward_decode(torch.ones(2, 4, 64), 2, 3, hidden, batch))

    seen = see_a_step(EagerRunner(step), backend)
    assert seen.reasons == {9: "is not among the model's modules"}
    assert out[0].shape == (2, 4 * 64)
    assert backend.got == []


def test_a_later_argument_is_named() -> None:
    layer = SimpleNamespace(layer_id=2, tp_q_head_num=4)
    for sinks in (None, torch.zeros(4), torch.zeros(4, dtype=torch.bfloat16)):
        check_arguments(layer, {"sinks": sinks, "return_lse": False})
    with pytest.raises(UnsupportedConfiguration, match="layer 2 passes score_mod"):
        check_arguments(layer, {"sinks": torch.zeros(4), "score_mod": len})


@pytest.mark.parametrize(
    ("sinks", "words"),
    [
        (torch.zeros(8), r"sinks \(8,\) of torch.float32"),
        (torch.zeros(2, 4), r"sinks \(2, 4\) of torch.float32"),
        (torch.zeros(4, dtype=torch.int32), r"sinks \(4,\) of torch.int32"),
        ([0.0] * 4, "sinks as list"),
    ],
)
def test_sinks_of_another_form_are_named(sinks: Any, words: str) -> None:
    layer = SimpleNamespace(layer_id=2, tp_q_head_num=4)
    with pytest.raises(UnsupportedConfiguration, match=f"layer 2 passes {words}"):
        check_arguments(layer, {"sinks": sinks})
