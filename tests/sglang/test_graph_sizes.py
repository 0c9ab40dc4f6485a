"""What is said of decode steps without a CUDA graph, at start-up and when there are some."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sglang_codec.graph_sizes import OutgrownGraphs, decode_graphs, largest_decode_graph


def runner(sizes: list[int], *, most: int, backend: str = "full") -> Any:
    config = SimpleNamespace(decode=SimpleNamespace(backend=backend, bs=sizes))
    return SimpleNamespace(
        server_args=SimpleNamespace(cuda_graph_config=config),
        req_to_token_pool=SimpleNamespace(size=most),
    )


@pytest.mark.parametrize(
    ("sizes", "most", "largest"), [([1, 2, 256], 512, 256), ([1, 8], 8, 8), ([1, 256], 16, 16)]
)
def test_the_largest_graph_is_no_larger_than_the_batches(
    sizes: list[int], most: int, largest: int
) -> None:
    assert largest_decode_graph(runner(sizes, most=most)) == largest


def test_larger_batches_than_the_graphs_are_named_with_the_flag() -> None:
    said = decode_graphs(runner([1, 256], most=512))
    assert "from 257 on, of the 512" in said
    assert "--cuda-graph-max-bs-decode 512" in said


def test_graphs_for_all_batches_need_no_flag() -> None:
    assert (
        decode_graphs(runner([1, 64], most=64))
        == "decode graphs for all batches (up to 64 requests)"
    )


def test_without_graphs_all_steps_are_eager() -> None:
    for without in (runner([1, 64], most=64, backend="disabled"), runner([], most=64)):
        assert decode_graphs(without).startswith("all decode steps are eager")
        assert "--disable-cuda-graph" in decode_graphs(without)


def test_batches_that_outgrow_the_graphs_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    graphs = OutgrownGraphs(256)
    for requests in (1, 256):  # a step at start-up, and one whose graph has another reason
        graphs.look(requests)
    assert not caplog.messages
    for requests in (300, 400):
        graphs.look(requests)
    [said] = caplog.messages
    assert "300 requests decode at once, and the largest CUDA graph holds 256" in said
    assert "--cuda-graph-max-bs-decode 512, or --max-running-requests 256" in said


def test_without_graphs_nothing_is_said_again(caplog: pytest.LogCaptureFixture) -> None:
    OutgrownGraphs(0).look(300)
    assert not caplog.messages


def test_the_flag_is_sglangs() -> None:
    import argparse

    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert {
        "--cuda-graph-max-bs-decode",
        "--disable-cuda-graph",
        "--max-running-requests",
    } <= flags
