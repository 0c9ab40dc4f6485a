"""Figures: what tells backends apart, and that a panel holds any rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from library import figures


def test_backends_have_different_colours() -> None:
    names = ["codec", "flashinfer", "fa3", "triton", "torch_native", "x", "fa3/y"]
    assert len(set(figures.colours_of(names).values())) == len(names)
    assert figures.colours_of(["fa3/codec"])["fa3/codec"] == figures.COLOURS["codec"]


@pytest.mark.parametrize("limits", [[], [None, 4.0]])
def test_bars_of_groups_that_lack_a_backend_or_a_limit(tmp_path: Path, limits: list) -> None:
    figure, (times, gains) = figures.panels(2, (6, 6))
    series = {"codec": [2.0, None], "other": [3.0, 5.0]}
    figures.grouped_bars(times, ["a", "b"], series, limits, {("other", 1): "wrong"})
    heights = [[bar.get_height() for bar in bars] for bars in times.containers]
    assert heights == [[2.0], [3.0, 5.0]]
    assert [text.get_text() for text in times.texts] == ["wrong"]
    figures.gain_bars(gains, ["a", "b", "c"], [2.0, 0.97, 0.96], limits)
    colours = [bar.get_facecolor() for bar in gains.containers[0]]
    assert colours[0] == colours[1] != colours[2]
    figures.legend(figure)
    path = figures.save(figure, "title", tmp_path / "folder" / "figure.png")
    assert path.read_bytes().startswith(b"\x89PNG")
