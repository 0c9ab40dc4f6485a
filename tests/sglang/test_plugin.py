"""The entry point: found by SGLang, light, idempotent, and loud only where codec is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.server_args import ATTENTION_BACKEND_CHOICES
from sglang_versions import INSTALLED, run_python

from sglang_codec import versions
from sglang_codec.config import InvalidConfiguration
from sglang_codec.patches import cpu_host, tree_core
from sglang_codec.plugin import load_plugin

AS_SGLANG_LOADS_IT = """
import argparse, json, sys
from sglang.srt.plugins import load_plugins
before = set(sys.modules)
load_plugins()
import torch
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.server_args import ServerArgs
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
command = ["--model-path", "m", "--attention-backend", "codec"]
command += ["--decode-attention-backend", "codec"]
arguments = parser.parse_args(command)
print(json.dumps({
    "choice": [arguments.attention_backend, arguments.decode_attention_backend],
    "registered": "codec" in ATTENTION_BACKENDS,
    "ours": sorted(m for m in sys.modules if m.startswith("sglang_codec")),
    "cuda": torch.cuda.is_initialized(),
}))
"""


def test_sglang_finds_it_and_it_stays_light(distribution: Path) -> None:
    done = run_python("-c", AS_SGLANG_LOADS_IT, paths=(distribution,), TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["choice"] == ["codec", "codec"]
    assert seen["registered"]
    assert not seen["cuda"]
    # neither factory nor backend, kernels or hooks
    assert set(seen["ours"]) <= {
        "sglang_codec",
        "sglang_codec.plugin",
        "sglang_codec.patches",
        "sglang_codec.patches.backend_names",
        "sglang_codec.patches.cpu_host",
        "sglang_codec.config",
    }


def test_loading_twice_registers_once() -> None:
    load_plugin()
    factory = ATTENTION_BACKENDS["codec"]
    load_plugin()
    assert ATTENTION_BACKENDS["codec"] is factory
    assert ATTENTION_BACKEND_CHOICES.count("codec") == 1


def test_an_unsupported_sglang_is_refused_by_the_factory_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(versions, "installed_sglang", lambda: "0.9.0")
    load_plugin()
    with pytest.raises(versions.UnsupportedSGLang, match=r"SGLang 0\.9\.0; supported are 0\.5\.17"):
        ATTENTION_BACKENDS["codec"](SimpleNamespace())


def test_a_bad_variable_is_refused_by_the_factory_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_CODEC_DUMB", "plan.json")
    load_plugin()
    with pytest.raises(InvalidConfiguration, match="SGLANG_CODEC_DUMB is not a variable"):
        ATTENTION_BACKENDS["codec"](SimpleNamespace())


def test_a_cpu_without_the_interpreter_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    load_plugin()
    with pytest.raises(ValueError, match="set TRITON_INTERPRET=1 before the server starts"):
        ATTENTION_BACKENDS["codec"](SimpleNamespace(device="cpu"))


def test_cpu_host_is_prepared_only_when_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.layers.rotary_embedding import base

    monkeypatch.setattr(base, "_is_cpu", False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not cpu_host.prepare_cpu_host()
    assert not base._is_cpu
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert cpu_host.prepare_cpu_host()
    assert base._is_cpu


def test_a_machine_with_a_gpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert not cpu_host.prepare_cpu_host()


def test_the_unreadable_default_core_is_avoided(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.environ import envs

    # registers the variable for restoring, whatever the function does to it
    monkeypatch.setenv(tree_core.VARIABLE, "")
    monkeypatch.delenv(tree_core.VARIABLE)
    assert tree_core.prefer_readable_tree_core() is (INSTALLED == "0.5.21")
    if INSTALLED == "0.5.21":
        assert getattr(envs, tree_core.VARIABLE).get() == "python"


def test_a_core_that_the_user_chose_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tree_core.VARIABLE, "rust")
    assert not tree_core.prefer_readable_tree_core()
