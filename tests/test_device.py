"""Which launch configuration a GPU serves a shape with."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from pretended_gpu import pretend_gpu

from sglang_codec import device
from sglang_codec.attention_shape import AttentionShape

PLAIN = AttentionShape.plain(32, 8, 128)
SERVED = (
    *(AttentionShape.plain(16, 2, dim) for dim in (64, 96, 128, 256)),
    dataclasses.replace(PLAIN, soft_cap=30.0),
    dataclasses.replace(PLAIN, kv_dtype="float8_e4m3fn"),
    dataclasses.replace(PLAIN, window=4095),
    dataclasses.replace(PLAIN, key_dim=192),
    dataclasses.replace(PLAIN, query_rows=4),
)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(device, "_has_warp_roles", lambda: True)
    return pretend_gpu(monkeypatch, 9)


def test_shapes_are_served_with_warp_roles(hopper: torch.device) -> None:
    for shape in SERVED:
        assert device.describe_device(hopper, shape).config.warp_roles


def test_heads_of_fp8_that_fill_no_columns_are_not(hopper: torch.device) -> None:
    narrow = AttentionShape.plain(16, 2, 96, kv_dtype="float8_e4m3fn")
    assert not device.describe_device(hopper, narrow).config.warp_roles


@pytest.mark.parametrize("heads", [(32, 32), (16, 8), (32, 8)])
def test_rounded_weights_cost_what_they_do_in_larger_groups(
    heads: tuple[int, int], hopper: torch.device
) -> None:
    shape = AttentionShape.plain(*heads, 128)
    exact, rounding = (
        dataclasses.replace(
            device.describe_device(hopper, shape, exact_weights=is_exact),
            name="NVIDIA H100 80GB HBM3",
        )
        for is_exact in (True, False)
    )
    large = device.cost_model(exact, device.plan_spec(exact, AttentionShape.plain(32, 8, 128)))
    spec = device.plan_spec(exact, shape)
    np.testing.assert_array_equal(device.cost_model(rounding, spec).us, large.us)
    is_large = heads == (32, 8)
    assert np.array_equal(device.cost_model(exact, spec).us, large.us) == is_large
