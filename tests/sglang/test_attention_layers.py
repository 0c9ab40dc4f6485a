"""Which layers go to SGLang's backend: all that carry something that codec does not know."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

from sglang_codec.attention_layers import attention_layers, is_off, scales_of, why_unknown


def layer(layer_id: int = 0, **more: Any) -> RadixAttention:
    made = {"num_heads": 4, "head_dim": 64, "scaling": 1.0, "num_kv_heads": 2}
    return RadixAttention(**made, layer_id=layer_id, **more)


def runner(*layers: torch.nn.Module, **parts: Any) -> SimpleNamespace:
    model = torch.nn.ModuleList(layers)
    fields = {"model_config": SimpleNamespace(), "token_to_kv_pool": SimpleNamespace()}
    fields["kv_cache_dtype"] = torch.bfloat16
    return SimpleNamespace(model=model, **(fields | parts))


def reason(one: RadixAttention, **parts: Any) -> str | None:
    return why_unknown(one, runner(one, **parts))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"is_cross_attention": True}, "cross attention"),
        ({"attn_type": AttentionType.ENCODER_ONLY}, "attn_type AttentionType.ENCODER_ONLY"),
        ({"attn_type": AttentionType.DECODER_BIDIRECTIONAL}, "attn_type"),
        ({"pos_encoding_mode": "ALIBI"}, "pos_encoding_mode ALIBI"),
    ],
)
def test_what_changes_attention_is_delegated(more: dict[str, Any], words: str) -> None:
    assert words in (reason(layer(**more)) or "")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("xai_temperature_len", 1024, "xai temperature over 1024 tokens"),
        ("q_scale_float", 0.5, "q_scale_float"),
        ("quant_method", object(), "quant_method"),
        ("window_left", 128, "attribute window_left"),
        ("sinks", torch.zeros(4), "attribute sinks"),
        ("sink_bias", torch.nn.Parameter(torch.zeros(4)), "attribute sink_bias"),
        ("gate", torch.nn.Linear(1, 1), "attribute gate"),
    ],
)
def test_what_is_set_afterwards_is_delegated(name: str, value: Any, words: str) -> None:
    one = layer()
    assert reason(one) is None
    setattr(one, name, value)
    assert words in (reason(one) or "")


@pytest.mark.parametrize("value", [None, False, 0, 0.0, ""])
def test_an_unknown_attribute_that_is_off_does_not_matter(value: Any) -> None:
    one = layer()
    one.window_left = value
    assert is_off(value)
    assert reason(one) is None


def test_kv_scales_of_a_quantised_checkpoint_do_not_matter() -> None:
    from sglang.srt.layers.quantization.kv_cache import BaseKVCacheMethod

    one = layer()
    one.quant_method = object.__new__(BaseKVCacheMethod)
    one.k_scale = torch.nn.Parameter(torch.ones(()))
    one.k_scale_float = 0.5
    assert reason(one) is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, (None, None)),
        ({"k_scale_float": 0.5, "v_scale_float": 2.0}, (0.5, 2.0)),
        ({"k_scale": 0.5, "v_scale": 0.5}, (0.5, 0.5)),
        ({"k_scale": torch.tensor(0.5), "k_scale_float": 0.25}, (0.25, None)),
        ({"k_scale": torch.tensor(0.5)}, "k_scale on the device only"),
        ({"v_scale_float": -1.0}, "v_scale -1.0, it must be a finite number greater than 0"),
        ({"v_scale_float": float("nan")}, "v_scale nan, it must be"),
        ({"k_scale_float": 0.0}, "k_scale 0.0, it must be"),
    ],
    ids=str,
)
def test_scales_of_an_fp8_cache(change: dict[str, Any], expected: Any) -> None:
    """They must be known to the host; of another cache they do not matter."""
    one = layer()
    for name, value in change.items():
        setattr(one, name, value)
    assert reason(one) is None
    why = why_unknown(one, runner(one, kv_cache_dtype=torch.float8_e4m3fn))
    if isinstance(expected, str):
        assert (why or "").startswith(expected)
    else:
        assert why is None
        assert scales_of(one) == expected


def test_a_subclass_may_do_anything() -> None:
    class Rotated(RadixAttention):
        pass

    assert reason(Rotated(4, 64, 1.0, 2, 0)) == "class Rotated"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"is_local_attention_model": True}, "chunked attention"),
        ({"is_local_attention_model": False, "attention_chunk_size": 8192}, "chunked attention"),
        ({"is_local_attention_model": False, "attention_chunk_size": None}, None),
    ],
)
def test_chunked_layers(config: dict[str, Any], expected: str | None) -> None:
    chunked, full = layer(0, use_irope=True), layer(1)
    of = runner(chunked, full, model_config=SimpleNamespace(**config))
    assert [why_unknown(one, of) for one in (chunked, full)] == [expected, None]


@pytest.mark.parametrize(
    "parts",
    [
        {"token_to_kv_pool": SimpleNamespace(layers_mapping={0: (0, True), 1: (0, False)})},
        {"model_config": SimpleNamespace(swa_attention_layer_ids=[0])},
        {"layer_info": SimpleNamespace(swa_attention_layer_ids=[0])},
    ],
)
def test_layers_whose_slots_are_windowed(parts: dict[str, Any]) -> None:
    windowed, full = layer(0), layer(1)
    of = runner(windowed, full, **parts)
    assert why_unknown(windowed, of)
    assert why_unknown(full, of) is None


class Holder(torch.nn.Module):
    """Keeps its layers where `modules()` does not look."""

    def __init__(self, kept: Any) -> None:
        super().__init__()
        self.kept = kept


@pytest.mark.parametrize(
    "wrap", [list, tuple, lambda them: dict(enumerate(them)), torch.nn.ModuleList]
)
def test_layers_are_found_where_a_module_keeps_them(wrap: Any) -> None:
    layers = [layer(0), Holder([layer(1)]), layer(2)]
    model = torch.nn.Sequential(Holder(wrap(layers)), layer(3))
    model.again = [model, layers[0]]
    assert [one.layer_id for one in attention_layers(model)] == [0, 1, 2, 3]
