"""The configuration and its environment variables."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from sglang_codec.config import CodecConfig, InvalidConfiguration


def test_defaults() -> None:
    assert CodecConfig.from_env({"PATH": "/bin", "SGLANG_PLUGINS": "codec"}) == CodecConfig()


def test_every_field_has_a_variable() -> None:
    config = CodecConfig.from_env(
        {
            "SGLANG_CODEC_PREFILL_BACKEND": " triton ",
            "SGLANG_CODEC_CHECK_SHARING": "1",
            "SGLANG_CODEC_DUMP": "plan.json",
            "SGLANG_CODEC_ALLOW_UNTESTED_SGLANG": "Yes",
        }
    )
    assert config == CodecConfig("triton", True, "plan.json", True)
    assert len(dataclasses.fields(config)) == 4


@pytest.mark.parametrize(
    ("text", "value"), [("on", True), ("TRUE", True), ("0", False), ("off", False), ("no", False)]
)
def test_switches(text: str, value: bool) -> None:
    config = CodecConfig.from_env({"SGLANG_CODEC_CHECK_SHARING": text})
    assert config.check_sharing is value


@pytest.mark.parametrize("text", ["", "2", "maybe"])
def test_a_switch_that_is_none_lists_the_values(text: str) -> None:
    with pytest.raises(InvalidConfiguration, match="accepted are 1, true, yes, on, 0, false"):
        CodecConfig.from_env({"SGLANG_CODEC_CHECK_SHARING": text})


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(InvalidConfiguration, match="SGLANG_CODEC_DUMP is empty"):
        CodecConfig.from_env({"SGLANG_CODEC_DUMP": " "})


def refused_dump(file: Path) -> str:
    with pytest.raises(InvalidConfiguration) as error:
        CodecConfig.from_env({"SGLANG_CODEC_DUMP": str(file)})
    assert f"SGLANG_CODEC_DUMP={str(file)!r} cannot be written" in str(error.value)
    return str(error.value)


def test_a_dump_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert f"{missing} is not a folder; create it" in refused_dump(missing / "plan.json")
    assert "it exists and is no file; name a file" in refused_dump(tmp_path)
    file = tmp_path / "file"
    file.touch()
    assert f"{file} is not a folder" in refused_dump(file / "plan.json")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "it exists and is no file" in refused_dump(pipe)
    assert "is not a folder" in refused_dump(tmp_path / ("long" * 200) / "plan.json")


def test_a_dump_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked of the system, because root may write everywhere."""
    asked = []
    monkeypatch.setattr(os, "access", lambda *asked_for: asked.append(asked_for))
    assert f"no permission to write in {tmp_path}; allow it" in refused_dump(tmp_path / "plan.json")
    assert asked == [(str(tmp_path), os.W_OK | os.X_OK)]


def test_a_dump_may_replace_a_file_or_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").symlink_to(tmp_path)
    for name in ("file", "link", "folder", "new"):
        file = str(tmp_path / name)
        assert CodecConfig.from_env({"SGLANG_CODEC_DUMP": file}).dump == file


def test_an_unknown_variable_lists_the_known_ones() -> None:
    with pytest.raises(InvalidConfiguration) as error:
        CodecConfig.from_env({"SGLANG_CODEC_CHEK_SHARING": "1"})
    assert "SGLANG_CODEC_CHEK_SHARING is not a variable of codec" in str(error.value)
    assert "SGLANG_CODEC_CHECK_SHARING" in str(error.value)


def test_it_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CodecConfig().dump = "elsewhere"
