"""A GPU that is not there, as far as launch configurations ask for one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sglang_codec.device import describe_device


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, major: int) -> torch.device:
    """Devices of type cuda have this compute capability; nothing runs on them."""
    about = {"major": major, "minor": 0, "multi_processor_count": 132, "L2_cache_size": 50 << 20}
    properties = SimpleNamespace(name="a GPU", **about)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    describe_device.cache_clear()
    return torch.device("cuda")
