"""Which launch configuration a GPU serves a shape with."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from sglang_codec import device
from sglang_codec.attention_shape import AttentionShape

PLAIN = AttentionShape.plain(32, 8, 128)
NOT_YET_RUN = {
    "fp8": dataclasses.replace(PLAIN, kv_dtype="float8_e4m3fn"),
    "window": dataclasses.replace(PLAIN, window=4095),
    "narrow": dataclasses.replace(PLAIN, key_dim=96, value_dim=96),
    "query rows": dataclasses.replace(PLAIN, query_rows=4),
    "unlike": dataclasses.replace(PLAIN, key_dim=192),
}


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    about = {"major": 9, "minor": 0, "multi_processor_count": 132, "L2_cache_size": 50 << 20}
    properties = SimpleNamespace(name="NVIDIA H100", **about)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(device, "_has_warp_roles", lambda: True)
    return torch.device("cuda")


def test_what_has_run_with_warp_roles_is_served_so(hopper: torch.device) -> None:
    capped = dataclasses.replace(PLAIN, soft_cap=30.0)
    for shape in (PLAIN, capped, *(AttentionShape.plain(16, 2, dim) for dim in (64, 256))):
        assert device.describe_device(hopper, shape).config.warp_roles


@pytest.mark.parametrize("name", NOT_YET_RUN)
def test_what_has_not_takes_the_kernel_that_is_tested_everywhere(
    name: str, hopper: torch.device
) -> None:
    assert not device.describe_device(hopper, NOT_YET_RUN[name]).config.warp_roles
