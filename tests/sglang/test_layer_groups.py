"""Which layers are served together, and why others are not."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretended_gpu import pretend_gpu
from sglang.srt.layers.radix_attention import RadixAttention

from sglang_codec import layer_groups
from sglang_codec.attention_shape import AttentionShape
from sglang_codec.layer_groups import LayerGroup, LayerGroups
from sglang_codec.refusals import UnsupportedConfiguration
from sglang_codec.shape_support import why_unsupported


def layer(
    layer_id: int = 0, heads: int = 4, kv_heads: int = 2, head_dim: int = 64, **more: Any
) -> RadixAttention:
    return RadixAttention(heads, head_dim, 1.0, kv_heads, layer_id, **more)


def groups(*layers: RadixAttention, device: str = "cuda") -> LayerGroups:
    runner = SimpleNamespace(
        device=device,
        model=torch.nn.ModuleList(layers),
        model_config=SimpleNamespace(),
        token_to_kv_pool=SimpleNamespace(),
        dtype=torch.bfloat16,
        kv_cache_dtype=torch.bfloat16,
    )
    return LayerGroups.of(runner)


def test_layers_of_equal_shape_are_a_group_and_the_largest_comes_first() -> None:
    found = groups(layer(0, heads=8), *(layer(i) for i in (3, 1, 2)), layer(7, heads=8))
    assert found.delegated == {}
    assert found.groups == (
        LayerGroup(AttentionShape.plain(4, 2, 64), (3, 1, 2)),
        LayerGroup(AttentionShape.plain(8, 2, 64), (0, 7)),
    )
    assert found.num_layers == 5


def test_layers_of_one_cap_are_a_group() -> None:
    found = groups(*(layer(i, logit_cap=cap) for i, cap in enumerate((30.0, 50.0, 30.0, 0.0))))
    assert [group.layer_ids for group in found.groups] == [(0, 2), (1,), (3,)]
    assert [group.shape.soft_cap for group in found.groups] == [30.0, 50.0, None]
    assert [str(group).endswith("capped at 30") for group in found.groups] == [True, False, False]


def test_a_request_has_to_fit_the_query_tiles_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of wide heads these hold fewer rows on some GPUs."""
    pretend_gpu(monkeypatch, 10)
    monkeypatch.setattr(layer_groups, "query_rows", lambda _: 4)
    found = groups(layer(0, heads=16), layer(1, heads=32, head_dim=256), layer(2, heads=16))
    assert [group.layer_ids for group in found.groups] == [(0, 2)]
    assert found.delegated.keys() == {1}
    assert "64 rows of a query tile, the limit is 32: at most 2 query rows" in found.delegated[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head_dim": 48}, ["head dim 48", "64, 80, 96, 128, 192/128, 256"]),
        ({"head_dim": 128, "v_head_dim": 64}, ["head dim 128/64", "192/128, 256"]),
        ({"head_dim": 128, "v_head_dim": 192}, ["head dim 128/192", "192/128, 256"]),
        ({"heads": 32, "kv_heads": 1}, ["32 query heads", "limit is 16"]),
        ({"heads": 6, "kv_heads": 4}, ["6 query heads", "4 KV heads"]),
        ({"sliding_window_size": 512}, ["sliding window of 513 tokens", "1024 and more"]),
        ({"logit_cap": float("inf")}, ["logit cap inf", "finite"]),
        ({"logit_cap": 30.0, "logit_capping_method": "other"}, ["logit_capping_method other"]),
        ({"is_cross_attention": True}, ["cross attention"]),
    ],
)
def test_what_no_kernel_has_is_delegated_or_refused(
    changes: dict[str, Any], words: list[str]
) -> None:
    found = groups(layer(0), layer(1, **changes))
    assert [group.layer_ids for group in found.groups] == [(0,)]
    assert all(word in found.delegated[1] for word in words), found.delegated
    with pytest.raises(UnsupportedConfiguration, match="none of the model's 1 ") as error:
        groups(layer(1, **changes))
    assert all(word in str(error.value) for word in [*words, "--attention-backend"])


def test_a_layer_with_other_value_heads_is_delegated() -> None:
    odd = layer(1)
    odd.tp_v_head_num = 1
    assert groups(layer(0), odd).delegated == {1: "1 value heads for 2 key heads"}


@pytest.mark.parametrize(
    ("head_dim", "accepted"), [(16, True), (24, True), (192, True), (8, False), (44, False)]
)
def test_head_dims_of_the_interpreter(head_dim: int, accepted: bool) -> None:
    if accepted:
        groups(layer(head_dim=head_dim), device="cpu")
    else:
        with pytest.raises(UnsupportedConfiguration, match=f"head dim {head_dim}, the interpreter"):
            groups(layer(head_dim=head_dim), device="cpu")


@pytest.mark.parametrize("dims", [(64, 64), (80, 80), (96, 96), (192, 128), (256, 256)], ids=str)
def test_head_dims_of_a_gpu(dims: tuple[int, int]) -> None:
    found = groups(layer(0, head_dim=dims[0], v_head_dim=dims[1]))
    (group,) = found.groups
    assert (group.shape.key_dim, group.shape.value_dim) == dims
    assert group.shape.kv_token_bytes == 2 * sum(dims)
    assert f"heads of {'/'.join(map(str, dict.fromkeys(dims)))}, bfloat16" in str(group)


def test_a_layer_that_shares_its_id_with_another_kind_is_not_served() -> None:
    with pytest.raises(UnsupportedConfiguration, match="none of the model's 1 .*cross attention"):
        groups(layer(0), layer(0, is_cross_attention=True))
    found = groups(layer(0), layer(0, heads=8), layer(1))
    assert "4/2 heads of 64" in found.delegated[0]
    assert "8/2 heads of 64" in found.delegated[0]


def test_what_a_call_showed_leaves_the_groups() -> None:
    found = groups(layer(0), layer(1), layer(2, heads=8), layer(3, heads=8))
    fewer = found.without({0: "passes score_mod", 2: "passes score_mod", 3: "passes score_mod"})
    assert fewer.groups == (LayerGroup(AttentionShape.plain(4, 2, 64), (1,)),)
    assert list(fewer.delegated) == [0, 2, 3]
    assert (found.num_layers, fewer.num_layers) == (4, 4)
    assert found.delegated == {}
    with pytest.raises(UnsupportedConfiguration, match="none .* 4 .*passes score_mod"):
        fewer.without({1: "passes score_mod"})


@dataclass(frozen=True, slots=True)
class WithSlope(AttentionShape):
    """A property that no kernel has heard of."""

    slope: float = 0.0


def test_a_property_that_no_kernel_honours_is_refused() -> None:
    heads = (4, 2, 64, 64, "bfloat16", "bfloat16")
    assert why_unsupported(WithSlope(*heads), interpreted=False) is None
    assert why_unsupported(WithSlope(*heads, slope=0.5), interpreted=False) == "slope 0.5"
    for name, value in {"window": 9, "soft_cap": -3.0, "query_rows": 17}.items():
        assert why_unsupported(AttentionShape(*heads, **{name: value}), interpreted=False), name
    for kv_dtype in ("float16", "uint8", "float8_e4m3fnuz"):
        reason = why_unsupported(AttentionShape(*heads[:5], kv_dtype), interpreted=False)
        assert reason is not None
        assert all(word in reason for word in (kv_dtype, "bfloat16 and float8_e4m3fn and"))
    for kv_dtype in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        assert why_unsupported(AttentionShape(*heads[:5], kv_dtype), interpreted=False) is None
