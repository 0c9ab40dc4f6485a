"""A model with layers of two shapes is served whole: one tree, a plan for each shape."""

from __future__ import annotations

from pathlib import Path

import pytest
from second_layer import GRAPHS, are_alike, serve, serve_on_a_gpu
from sglang_versions import INSTALLED, OVERLAYS


def test_tokens_are_those_of_the_stock_backend(tmp_path: Path) -> None:
    two = {"query_heads": 8}
    stock = serve(tmp_path / "stock", "torch_native", two)["outputs"]
    assert len({tuple(tokens) for tokens in stock.values()}) > 1
    for version in (INSTALLED, *OVERLAYS):
        ours = serve(tmp_path / version, "codec", two, sglang=version)
        assert ours["groups"] == [f"1 of {n}/2 heads of 32, float32" for n in (4, 8)]
        assert (ours["delegated"], ours["fallbacks"]) == ([], {})
        assert ours["saved"] > 0
        assert ours["outputs"] == stock


@pytest.mark.cuda
@pytest.mark.parametrize("graphs", GRAPHS)
def test_they_are_on_a_gpu(graphs: str, tmp_path: Path) -> None:
    settings = {"query_heads": 16, "server": GRAPHS[graphs]}
    ours, theirs = (
        serve_on_a_gpu(tmp_path / backend, backend, settings, "fa3") for backend in ("codec", "fa3")
    )
    assert len(ours["groups"]) == 2
    assert (ours["delegated"], ours["fallbacks"]) == ([], {})
    assert ours["saved"] > 0
    assert are_alike(ours["outputs"], theirs["outputs"])
