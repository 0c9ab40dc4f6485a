"""The configuration and its environment variables."""

from __future__ import annotations

import dataclasses

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


def test_an_unknown_variable_lists_the_known_ones() -> None:
    with pytest.raises(InvalidConfiguration) as error:
        CodecConfig.from_env({"SGLANG_CODEC_CHEK_SHARING": "1"})
    assert "SGLANG_CODEC_CHEK_SHARING is not a variable of codec" in str(error.value)
    assert "SGLANG_CODEC_CHECK_SHARING" in str(error.value)


def test_it_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CodecConfig().dump = "elsewhere"
