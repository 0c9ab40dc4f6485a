"""Ranges of a profile cost nothing where none is taken, and are there where one is."""

from __future__ import annotations

import pytest
import torch

from sglang_codec.profiled import profiled


@profiled("codec.test")
def add(one: int, *, other: int) -> int:
    return one + other


def test_without_a_profiler_no_range_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.profiler, "record_function", None)
    assert add(1, other=2) == 3


def test_a_profile_has_the_range() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        assert add(1, other=2) == 3
    assert [event.count for event in profile.key_averages() if event.key == "codec.test"] == [1]
