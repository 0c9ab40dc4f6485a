"""Which launch configuration a GPU serves a shape with."""

from __future__ import annotations

import dataclasses

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
