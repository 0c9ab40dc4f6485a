"""What scripts share: option types, settings of SGLang, programs, trees, documents."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from pathlib import Path

import pytest
import torch
from library import programs, results
from library.options import positive, positive_number, some_of
from library.servers.backends import as_flags, has_gpu, machine_arguments
from library.trees import join, parse_tree


def test_a_list_of_known_words() -> None:
    parse = some_of(("codec", "fa3"))
    assert parse("fa3, codec,fa3") == ["fa3", "codec"]
    for text in ("", ",", "codec,fa4"):
        with pytest.raises(ArgumentTypeError, match="choose from codec,fa3"):
            parse(text)
    assert some_of(("a, b", "c"), separator=";")("c;a, b") == ["c", "a, b"]


@pytest.mark.parametrize("text", ["0", "-1", "x", ""])
def test_numbers_are_above_zero(text: str) -> None:
    for parse in (positive, positive_number):
        with pytest.raises(ArgumentTypeError, match="need a"):
            parse(text)


def test_engines_and_servers_get_the_same_settings() -> None:
    assert {"--disable-cuda-graph", "--dtype=float32"} <= set(
        as_flags(machine_arguments(gpu=False))
    )


def test_a_gpu_is_measured_with_the_flags_that_users_pass() -> None:
    assert machine_arguments(gpu=True) == {}


def test_the_newest_program_of_a_place_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for version in ("2024", "2025"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "ncu").touch(0o755)
    places = [str(tmp_path / "*" / "ncu")]
    assert programs.find("ncu", None, places) == str(tmp_path / "2025" / "ncu")
    assert programs.find("ncu", "nowhere", places) is None
    (tmp_path / "ncu").touch(0o755)
    assert programs.find("ncu", None, places) == str(tmp_path / "ncu")


def test_trees_are_read_as_they_are_written() -> None:
    nodes, tokens = parse_tree("1,4,8_4096,256,0")
    assert f"{join(nodes)}_{join(tokens)}" == "1,4,8_4096,256,0"
    with pytest.raises(ValueError, match="."):
        parse_tree("1,4")


def test_a_document_is_written_whole_and_tells_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/a/b/bench.py", "--json=/tmp/x.json"])
    monkeypatch.setenv("BENCH_COMMIT", "abc")
    path = tmp_path / "folder" / "x.json"
    results.write(results.head("H100") | {"ratio": float("nan")}, path)
    document = json.loads(path.read_text())
    assert document["command"] == "bench.py --json=x.json"
    assert (document["gpu"], document["commit"], document["ratio"]) == ("H100", "abc", None)
    assert {"python", "torch", "sglang"} <= document["versions"].keys()
    assert [file.name for file in path.parent.iterdir()] == ["x.json"]


def test_gpus_are_counted_without_touching_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is forked from a process that has touched CUDA cannot use it, nor import SGLang."""

    def touch() -> None:
        raise AssertionError("CUDA was touched")

    monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: 2)
    monkeypatch.setattr(torch.cuda, "_cached_device_count", None)
    monkeypatch.setattr(torch.cuda, "_is_compiled", lambda: True)
    monkeypatch.setattr(torch._C, "_cuda_getDeviceCount", touch, raising=False)
    assert has_gpu()
