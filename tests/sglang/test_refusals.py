"""What codec refuses at start-up, with the value, the limit and the flag in the text."""

from __future__ import annotations

import dataclasses
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretended_gpu import pretend_gpu
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache import memory_pool, swa_memory_pool

from sglang_codec import factory
from sglang_codec.config import CodecConfig
from sglang_codec.known_settings import KNOWN, RELATED, unknown_settings
from sglang_codec.layer_groups import LayerGroups
from sglang_codec.refusals import UnsupportedConfiguration, check_supported
from sglang_codec.speculation import query_rows


class Model(torch.nn.Module):
    def __init__(self, *layers: RadixAttention) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)


def layer(
    layer_id: int = 0, *, heads: int = 4, kv_heads: int = 2, head_dim: int = 64, **more: Any
) -> RadixAttention:
    return RadixAttention(heads, head_dim, 1.0, kv_heads, layer_id, **more)


def pool(name: str = "MHATokenToKVPool", **fields: Any) -> Any:
    """A pool of one of SGLang's classes, without its buffers."""
    owner = memory_pool if hasattr(memory_pool, name) else swa_memory_pool
    made = object.__new__(getattr(owner, name))
    vars(made).update(fields)
    return made


def runner(**changes: Any) -> SimpleNamespace:
    """A model runner that codec accepts, with changes; `args_*` go to the server arguments."""
    arguments = {
        name.removeprefix("args_"): changes.pop(name)
        for name in list(changes)
        if name.startswith("args_")
    }
    model_dtype = changes.pop("model_dtype", torch.bfloat16)
    fields = {
        "device": "cuda",
        "gpu_id": 0,
        "use_mla_backend": False,
        "is_draft_worker": False,
        "model": Model(layer()),
        "model_config": SimpleNamespace(is_encoder_decoder=False),
        "dtype": model_dtype,
        "kv_cache_dtype": model_dtype,
        "token_to_kv_pool": pool(),
        "server_args": SimpleNamespace(**arguments),
    }
    return SimpleNamespace(**(fields | changes))


@pytest.fixture(autouse=True)
def _h100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100")
    monkeypatch.setenv("TRITON_INTERPRET", "1")


ENCODER_DECODER = SimpleNamespace(is_encoder_decoder=True)
HND = pool(
    "SWAKVPool",
    full_kv_pool=pool(),
    swa_kv_pool=pool(kv_cache_layout="hnd"),
    layers_mapping={},
)


class OtherPool(memory_pool.MHATokenToKVPool):
    """A pool that may keep its slots in any way."""


def speculating(**settings: Any) -> dict[str, Any]:
    """Changes of a runner that verifies chains of four tokens, with other settings."""
    settings = {"algorithm": "EAGLE", "eagle_topk": 1, "attention_mode": "decode"} | settings
    return {
        "args_speculative_num_draft_tokens": 4,
        **{f"args_speculative_{name}": value for name, value in settings.items()},
    }


REFUSED = {
    "mla": ({"use_mla_backend": True}, ["MLA", "--attention-backend"]),
    "algorithm": (
        speculating(algorithm="DSPARK"),
        ["--speculative-algorithm DSPARK", "EAGLE3", "drop --speculative-algorithm"],
    ),
    "draft model": (
        {"is_draft_worker": True},
        ["does not draft", "set --speculative-draft-attention-backend"],
    ),
    "draft trees": (
        speculating(eagle_topk=4),
        ["--speculative-eagle-topk 4 drafts trees", "set --speculative-eagle-topk 1"],
    ),
    "trees of n-grams": (
        speculating(algorithm="NGRAM", eagle_topk=10),
        ["--speculative-ngram-max-bfs-breadth 10", "set --speculative-ngram-max-bfs-breadth 1"],
    ),
    "adaptive": (speculating(adaptive=True), ["drop --speculative-adaptive"]),
    "prefill verifies": (
        speculating(attention_mode="prefill"),
        ["--speculative-attention-mode prefill", "set --speculative-attention-mode decode"],
    ),
    "deterministic": (
        {"args_enable_deterministic_inference": True},
        ["drop --enable-deterministic-inference"],
    ),
    "encoder-decoder": ({"model_config": ENCODER_DECODER}, ["encoder-decoder", "cross attention"]),
    "dcp": ({"args_dcp_size": 2}, ["--dcp-size 2", "--dcp-size 1"]),
    "tbo": ({"args_enable_two_batch_overlap": True}, ["drop --enable-two-batch-overlap"]),
    "unified memory": ({"args_enable_unified_memory": True}, ["drop --enable-unified-memory"]),
    "pdmux": ({"args_enable_pdmux": True}, ["drop --enable-pdmux"]),
    "layout": ({"token_to_kv_pool": HND}, ["layout is hnd", "unset SGLANG_USE_HND_KVCACHE"]),
    "attention cp": ({"args_attn_cp_size": 4}, ["--attn-cp-size 4", "--attn-cp-size 1"]),
    "torch.compile": ({"args_enable_torch_compile": True}, ["drop --enable-torch-compile"]),
    "megakernel": ({"args_enable_nvidia_megakernel": True}, ["drop --enable-nvidia-megakernel"]),
    "pool subclass": (
        {"token_to_kv_pool": object.__new__(OtherPool)},
        ["KV pool is OtherPool,", "MHATokenToKVPool"],
    ),
    "inner pool": (
        {"token_to_kv_pool": pool("HybridLinearKVPool", full_kv_pool=object.__new__(OtherPool))},
        ["OtherPool in HybridLinearKVPool"],
    ),
    "sparse pool": ({"token_to_kv_pool": pool("MiniMaxSparseKVPool")}, ["MiniMaxSparseKVPool"]),
    "page-major pool": (
        {"token_to_kv_pool": pool("PageMajorMHATokenToKVPool")},
        ["PageMajorMHATokenToKVPool"],
    ),
    "fp16 kv of a bf16 model": (
        {"kv_cache_dtype": torch.float16},
        ["torch.float16", "torch.bfloat16", "--kv-cache-dtype bf16"],
    ),
    "fp4 kv": ({"kv_cache_dtype": torch.uint8}, ["torch.uint8", "fp8_e4m3 or fp8_e5m2"]),
    "scales of blocks": (
        {
            "kv_cache_dtype": torch.float8_e4m3fn,
            "token_to_kv_pool": pool(k_scale_buffer=[torch.zeros(1)]),
        },
        ["scales beside K and V", "--kv-cache-dtype bf16"],
    ),
    "mxfp8 pool": (
        {
            "kv_cache_dtype": torch.float8_e4m3fn,
            "token_to_kv_pool": pool("MHATokenToKVPoolMXFP8"),
        },
        ["MHATokenToKVPoolMXFP8"],
    ),
    "fp32 model on a GPU": ({"model_dtype": torch.float32}, ["torch.float32", "--dtype"]),
    "old gpu": ({}, ["(7, 5)", "(8, 0)"]),
    "other device": ({"device": "xpu"}, ["device xpu", "NVIDIA"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal_names_value_limit_and_remedy(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, words = REFUSED[case]
    if case == "old gpu":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    with pytest.raises(UnsupportedConfiguration) as error:
        check_supported(runner(**changes))
    text = str(error.value)
    assert text.startswith("codec: ")
    assert all(word in text for word in words), text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_supported_passes(dtype: torch.dtype) -> None:
    check_supported(runner(model_dtype=dtype))
    for kv_dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        check_supported(runner(model_dtype=dtype, kv_cache_dtype=kv_dtype))


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many rows a query tile has, its GPU says."""
    pretend_gpu(monkeypatch, 9)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("linear", [False, True], ids=["", "linear layers"])
@pytest.mark.parametrize("algorithm", ["EAGLE", "EAGLE3", "STANDALONE", "NGRAM", "DFLASH"])
def test_chains_of_a_fixed_length_are_verified(algorithm: str, linear: bool) -> None:
    made = runner(**speculating(algorithm=algorithm))
    if linear:
        made.token_to_kv_pool = pool("HybridLinearKVPool", full_kv_pool=pool())
    check_supported(made)
    assert query_rows(made) == 4
    assert query_rows(runner()) == 1
    assert [str(one) for one in LayerGroups.of(made).groups] == [
        "1 of 4/2 heads of 64, bfloat16, 4 query rows"
    ]


@pytest.mark.usefixtures("hopper")
def test_too_many_rows_of_a_request_leave_no_layer() -> None:
    wide = runner(model=Model(layer(heads=32, kv_heads=2)), **speculating())
    assert LayerGroups.of(wide).groups
    wide.server_args.speculative_num_draft_tokens = 5
    with pytest.raises(UnsupportedConfiguration, match="at most 4 query rows of this group"):
        LayerGroups.of(wide)


def test_a_stream_of_its_own_for_plans_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_ENABLE_OVERLAP_PLAN_STREAM", "1")
    check_supported(runner())
    with pytest.raises(UnsupportedConfiguration, match="unset SGLANG_ENABLE_OVERLAP_PLAN_STREAM"):
        check_supported(runner(**speculating()))


def test_metadata_glue_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.environ import envs

    if not hasattr(envs, "SGLANG_ENABLE_METADATA_GLUE_GRAPH"):
        pytest.skip("this SGLang has no such variable")
    monkeypatch.setenv("SGLANG_ENABLE_METADATA_GLUE_GRAPH", "1")
    with pytest.raises(UnsupportedConfiguration, match="unset SGLANG_ENABLE_METADATA_GLUE_GRAPH"):
        check_supported(runner())


# the factory's own refusals ---------------------------------------------------------------------


@pytest.fixture
def _accepting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory, "require_supported", lambda **_: "0.5.21")
    monkeypatch.setattr(factory, "check_supported", lambda _: None)


def newer_sglang(**settings: Any) -> Any:
    """Server arguments of a class with an argument that no tried SGLang has."""
    made = dataclasses.make_dataclass("ServerArgs", [("sliding_kv_mode", str, "auto")])
    return made(**settings)


@pytest.mark.usefixtures("_accepting")
@pytest.mark.parametrize("allowed", [False, True])
def test_a_setting_of_a_newer_sglang_is_named(
    allowed: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = CodecConfig(allow_untested_sglang=allowed)
    monkeypatch.setattr(factory.CodecConfig, "from_env", lambda: config)
    # the next check refuses, so nothing is built
    names = {"prefill_attention_backend_str": "codec", "decode_attention_backend_str": "fa3"}
    wrong = runner(**names, server_args=newer_sglang(sliding_kv_mode="ring"))
    with pytest.raises(UnsupportedConfiguration) as error:
        factory.create_backend(wrong)
    assert ("--sliding-kv-mode" in str(error.value)) is not allowed
    assert ("--sliding-kv-mode" in caplog.text) is allowed


def test_a_setting_of_a_newer_sglang_does_not_matter_unless_set() -> None:
    assert unknown_settings(newer_sglang()) == []
    assert unknown_settings(newer_sglang(sliding_kv_mode="")) == []


def test_every_related_setting_of_this_sglang_is_known() -> None:
    from sglang.srt.server_args import ServerArgs

    names = set(inspect.signature(ServerArgs).parameters)
    assert {name for name in names if RELATED.search(name)} <= KNOWN


@pytest.mark.usefixtures("_accepting")
def test_codec_does_not_prefill() -> None:
    names = {"prefill_attention_backend_str": "codec", "decode_attention_backend_str": "fa3"}
    with pytest.raises(UnsupportedConfiguration, match="use --decode-attention-backend codec"):
        factory.create_backend(runner(**names))


@pytest.mark.usefixtures("_accepting")
@pytest.mark.parametrize("name", ["codec", "flash"])
def test_a_prefill_backend_that_is_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CodecConfig(prefill_backend=name)
    monkeypatch.setattr(factory.CodecConfig, "from_env", lambda: config)
    names = {"prefill_attention_backend_str": "codec", "decode_attention_backend_str": "codec"}
    with pytest.raises(UnsupportedConfiguration) as error:
        factory.create_backend(runner(**names))
    assert f"prefill backend {name!r}" in str(error.value)
    assert "torch_native" in str(error.value)
    assert "SGLANG_CODEC_PREFILL_BACKEND" in str(error.value)


@pytest.mark.usefixtures("_accepting")
@pytest.mark.parametrize("stock", ["fa3", "flashinfer", "triton", "torch_native"])
def test_weights_are_rounded_where_the_stock_backend_rounds_them(
    stock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang_codec import backend

    made: list[dict[str, bool]] = []

    def make(*_: object, **options: bool) -> None:
        made.append(options)
        raise InterruptedError

    monkeypatch.setattr(backend, "CodecDecodeBackend", make)
    names = {"prefill_attention_backend_str": stock, "decode_attention_backend_str": "codec"}
    with pytest.raises(InterruptedError):
        factory.create_backend(runner(**names, server_args=SimpleNamespace()))
    assert made == [{"exact_weights": stock != "fa3"}]


def test_names_come_from_the_arguments_where_the_runner_has_none() -> None:
    arguments = SimpleNamespace(get_attention_backends=lambda: ("fa3", "codec"))
    found = factory.attention_backend_names(SimpleNamespace(server_args=arguments))
    assert found == ("fa3", "codec")


@pytest.mark.parametrize(
    ("capability", "packages", "expected"),
    [
        ((9, 0), ("sgl_kernel", "flashinfer"), "fa3"),
        ((9, 0), ("flashinfer",), "flashinfer"),
        ((8, 0), ("sgl_kernel", "flashinfer"), "flashinfer"),
        ((10, 0), (), "triton"),
    ],
)
def test_default_prefill_backend(
    capability: tuple[int, int],
    packages: tuple[str, ...],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(factory.importlib.util, "find_spec", lambda name: name in packages or None)
    assert factory.default_prefill_backend(runner()) == expected
    of_e5m2 = factory.default_prefill_backend(runner(kv_cache_dtype=torch.float8_e5m2))
    assert of_e5m2 == ("flashinfer" if expected == "fa3" and "flashinfer" in packages else expected)
    assert factory.default_prefill_backend(runner(device="cpu")) == "torch_native"
