"""A delegate is a whole backend: every call of SGLang's contract reaches it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from backend_bench import Bench
from second_layer import GRAPHS, are_alike, serve, serve_on_a_gpu
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend, SharedReadEnds
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang_versions import INSTALLED, OVERLAYS, VERSIONS
from warm_python import run_warm

# calls of the contract -> arguments
FORWARDED: dict[str, tuple[Any, ...]] = {
    "init_forward_metadata": ("batch",),
    "init_forward_metadata_out_graph": ("batch",),
    "init_forward_metadata_in_graph": ("batch",),
    "init_cuda_graph_state": (4, 4),
    "get_cuda_graph_seq_len_fill_value": (),
    "on_after_cuda_graph_warmup": (),
    "validate_elastic_cuda_graph_recapture": (),
    "shared_read_ends": (ForwardMode.DECODE,),
    "get_fused_kv_write_buffers": ("delegated layer", "batch"),
    "forward_decode": ("q", "k", "v", "delegated layer", "batch"),
}
# what SGLang asks of the backend that prefills, verifies or drafts, which codec never is
NOT_DECODE = {
    "supports_ragged_verify_graph",
    "folds_encoder_swa_replay",
    "glue_target_verify_metadata",
    "glue_draft_metadata",
    "supports_draft_extend_metadata_staging",
    "draft_extend_metadata_captured_in_graph",
    "extend_dummy_seqs_capped_by_req_pool",
    "use_captured_forward_metadata_for_breakable_cuda_graph",
    "prefill_cuda_graph_max_batch_size",
    "prefer_eager_mixed_prefill_under_dp_attention",
    "skips_prefill_metadata_on_idle_dp_rank",
    "supports_prefill_cuda_graph_max_context_size",
    "prefill_cuda_graph_default_max_seq_len",
    "dllm_attention",
    "resolve_prefill_shared_read_ends",
    "prepare_prefill_shared_read_snapshot",
    "_snapshot_prefill_shared_reads",
    "supports_full_cuda_graph_chunked_prefix",
    "prepare_full_cuda_graph_chunked_prefix",
    "init_forward_metadata_for_breakable_cuda_graph_capture",
    "prepare_forward_metadata_for_breakable_cuda_graph_replay",
    "late_layer_num_tokens",
    "verify_mask",
    "update_verify_buffers_to_fill_after_draft",
    "forward_extend",
    "forward_mixed",
}
# what codec answers by itself, and right for its delegate too
OWN = {
    "prefill_attention_backend_str",  # set by SGLang
    "decode_attention_backend_str",
    "data_type",  # of MLA backends
    "kv_cache_dtype",
    "attn_backend_list",  # children whose metadata a glue graph keeps; refused
    "forward_metadata",
    "kv_index_translator",  # passed on, see the test below
    "needs_cpu_seq_lens",  # yes
    "forward",  # calls forward_decode
    "support_triton",  # yes
    "get_indexer_metadata",  # of sparse attention; refused
}

STOCK = {"0.5.17": "torch_native", "0.5.23": "triton"}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_contract_holds_nothing_that_is_not_forwarded_or_known(
    version: str, tmp_path: Path
) -> None:
    program = tmp_path / "members.py"
    program.write_text(
        "import json; from sglang.srt.layers.attention.base_attn_backend import AttentionBackend\n"
        "print(json.dumps([n for n in vars(AttentionBackend) if not n.startswith('__')]))"
    )
    done = run_warm(program, sglang=version)
    assert done.returncode == 0, done.stderr[-2000:]
    members = {name for name in json.loads(done.stdout) if not name.startswith("_abc")}
    unknown = members - set(FORWARDED) - NOT_DECODE - OWN
    assert not unknown, f"SGLang {version} has new calls: forward them to the delegate, or say why"


@pytest.mark.parametrize("call", FORWARDED)
def test_each_call_reaches_the_delegate(call: str) -> None:
    ordinary = MagicMock(spec=AttentionBackend, name="ordinary")
    for name in FORWARDED:  # those of newer versions too
        setattr(ordinary, name, MagicMock(name=name))
    ordinary.shared_read_ends.return_value = SharedReadEnds.POST_REPLAY
    bench = Bench(change_layer=change_second, ordinary=ordinary)
    bench.start([60], [1])
    values = {"batch": bench.batch([61], [1], None), "delegated layer": bench.layers[1]}
    values |= dict.fromkeys("qkv", torch.zeros(1, 64))
    arguments = [values.get(a, a) if isinstance(a, str) else a for a in FORWARDED[call]]
    answer = getattr(bench.backend, call)(*arguments)
    asked = getattr(ordinary, call)
    asked.assert_called_once()
    assert all(
        given is wanted for given, wanted in zip(asked.call_args.args, arguments, strict=False)
    )
    if answer is not None:
        assert answer is asked.return_value


def change_second(layer: Any) -> None:
    if layer.layer_id == 1:
        layer.unheard_of = 1


def test_capture_is_told_to_the_delegate() -> None:
    ordinary = MagicMock(spec=AttentionBackend)
    bench = Bench(change_layer=change_second, ordinary=ordinary)
    batch = bench.batch([1], [0], None)
    bench.backend.init_forward_metadata_out_graph(batch, in_capture=True)
    ordinary.init_forward_metadata_out_graph.assert_called_once_with(batch, in_capture=True)


def test_a_served_layer_is_not_the_delegates_business() -> None:
    ordinary = MagicMock(spec=AttentionBackend)
    bench = Bench(change_layer=change_second, ordinary=ordinary)
    bench.start([60, 70], [1, 2])
    bench.eager(bench.batch([61, 71], [1, 2], None))
    ordinary.forward_decode.assert_not_called()
    assert bench.backend.get_fused_kv_write_buffers(bench.layers[0], None) is None


def test_the_reads_end_when_the_later_of_both_has_read() -> None:
    for end in (SharedReadEnds.PRE_REPLAY, SharedReadEnds.IN_REPLAY, SharedReadEnds.UNKNOWN):
        ordinary = MagicMock(spec=AttentionBackend)
        ordinary.shared_read_ends.return_value = end
        backend = Bench(change_layer=change_second, ordinary=ordinary).backend
        assert backend.shared_read_ends(ForwardMode.DECODE) is end
    alone = Bench().backend
    assert alone.shared_read_ends(ForwardMode.DECODE) is SharedReadEnds.PRE_REPLAY
    assert alone.shared_read_ends(ForwardMode.EXTEND) is SharedReadEnds.UNKNOWN


def test_the_translator_of_kv_slots_is_the_delegates() -> None:
    ordinary = SimpleNamespace(kv_index_translator=None)
    backend = Bench(change_layer=change_second, ordinary=ordinary).backend
    backend.kv_index_translator = translator = object()
    assert ordinary.kv_index_translator is backend.kv_index_translator is translator
    alone = Bench().backend
    alone.kv_index_translator = translator
    assert alone.kv_index_translator is None


CHANGED = {"layer": {"unheard_of": 1}}


@pytest.fixture(scope="module")
def stock_outputs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The tokens of a stock backend alone; on the installed SGLang, as versions agree on them."""

    @functools.cache
    def outputs(stock: str) -> Any:
        return serve(tmp_path_factory.mktemp("stock"), stock, CHANGED)["outputs"]

    return outputs


@pytest.mark.parametrize(
    ("version", "stock"),
    [
        (INSTALLED, "triton"),
        *((version, stock) for version, stock in STOCK.items() if version in OVERLAYS),
    ],
)
def test_delegated_layers_decode_without_graphs(
    version: str, stock: str, tmp_path: Path, stock_outputs: Callable[[str], Any]
) -> None:
    """Real stock backends; the second layer has what codec does not know."""
    prefill = {"SGLANG_CODEC_PREFILL_BACKEND": stock}
    ours = serve(tmp_path, "codec", CHANGED, sglang=version, **prefill)
    assert ours["outputs"] == stock_outputs(stock)
    assert ours["delegated"] == [1]
    assert ours["fallbacks"] == {}
    assert ours["saved"] > 0


@pytest.mark.cuda
@pytest.mark.parametrize("graphs", GRAPHS)
@pytest.mark.parametrize("stock", ["fa3", "flashinfer", "triton"])
def test_delegated_layers_decode_on_a_gpu(stock: str, graphs: str, tmp_path: Path) -> None:
    """An attribute that codec does not know delegates a layer, whatever its mathematics."""
    settings = {"layer": {"unheard_of": 1}, "server": GRAPHS[graphs]}
    ours, theirs = (
        serve_on_a_gpu(tmp_path / backend, backend, settings, stock) for backend in ("codec", stock)
    )
    assert ours["delegated"] == [1]
    assert ours["fallbacks"] == {}
    assert ours["saved"] > 0
    assert are_alike(ours["outputs"], theirs["outputs"])
