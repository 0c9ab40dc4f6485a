"""`--attention-backend codec` names the decode backend; SGLang chooses the prefill backend."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from sglang_versions import VERSIONS, run_python
from warm_python import run_warm

from sglang_codec.config import InvalidConfiguration
from sglang_codec.patches.backend_names import fit_to_the_model, name_the_decode_backend

Names = tuple[str | None, str | None, str | None]

CASES: dict[str, tuple[Names, Names]] = {
    # base, prefill and decode name, before and after
    "the base name": (("codec", None, None), (None, None, "codec")),
    "with a prefill name": (("codec", "fa3", None), (None, "fa3", "codec")),
    "all three": (("codec", "codec", "codec"), (None, None, "codec")),
    "both modes": ((None, "codec", "codec"), (None, None, "codec")),
    "both modes over a base": (("fa3", "codec", "codec"), ("fa3", None, "codec")),
    "the decode name": ((None, None, "codec"), (None, None, "codec")),
    "the decode name over a base": (("fa3", None, "codec"), ("fa3", None, "codec")),
    "prefill only": (("codec", None, "fa3"), ("codec", None, "fa3")),
    "another backend": (("fa3", None, None), ("fa3", None, None)),
    "none": ((None, None, None), (None, None, None)),
}


def arguments(names: Names) -> SimpleNamespace:
    base, prefill, decode = names
    return SimpleNamespace(
        attention_backend=base,
        prefill_attention_backend=prefill,
        decode_attention_backend=decode,
    )


@pytest.mark.parametrize("case", CASES)
def test_names_before_resolution(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGLANG_CODEC_PREFILL_BACKEND", raising=False)
    before, after = CASES[case]
    found = arguments(before)
    name_the_decode_backend(found)
    assert found == arguments(after)
    # what is resolved by one process is sent to others, which ask again
    name_the_decode_backend(found)
    assert found == arguments(after)


@pytest.mark.parametrize("case", CASES)
def test_the_prefill_variable_is_the_base_name_where_none_is_given(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_CODEC_PREFILL_BACKEND", "triton")
    before, after = CASES[case]
    asked = case in ("the base name", "all three", "both modes")
    found = arguments(before)
    name_the_decode_backend(found)
    assert found == arguments(("triton", *after[1:]) if asked else after)


def test_a_bad_variable_is_named_where_codec_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_CODEC_PREFIL_BACKEND", "triton")
    with pytest.raises(InvalidConfiguration, match="SGLANG_CODEC_PREFIL_BACKEND is not a variable"):
        name_the_decode_backend(arguments(("codec", None, None)))
    name_the_decode_backend(arguments(("fa3", None, None)))


def test_resolved_arguments_are_left_alone() -> None:
    found = arguments(("codec", None, None))
    found._resolution_finished = True
    name_the_decode_backend(found)
    assert found.attention_backend == "codec"


@pytest.mark.parametrize("prefill", [None, "fa3"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_model_sees_the_name_that_prefills(prefill: str | None, fails: bool) -> None:
    """As long as SGLang fits the arguments to it, also if it refuses them."""
    found = arguments((None, prefill, "codec"))

    def fit(given: SimpleNamespace) -> str:
        assert given is found
        assert given == arguments((None, prefill, prefill))
        if fails:
            raise AssertionError("requires one of others")
        return "fitted"

    with pytest.raises(AssertionError, match="one of others") if fails else nullcontext():
        assert fit_to_the_model(fit, found) == "fitted"
    assert found == arguments((None, prefill, "codec"))


def test_other_names_are_shown_to_a_model_as_they_are() -> None:
    found = arguments(("codec", None, "fa3"))
    assert fit_to_the_model(vars, found) == vars(arguments(("codec", None, "fa3")))


PARSE = """
import argparse, json, sys
from sglang.srt.server_args import ServerArgs
def parse():
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    command = ["--model-path", sys.argv[1], "--attention-backend", "codec", "--device", "cpu"]
    return ServerArgs.from_cli_args(parser.parse_args(command))
try:
    parse()
except SystemExit as refused:
    print(refused.code)
from sglang.srt.plugins import load_plugins; load_plugins()
arguments = parse()
if hasattr(arguments, "resolve_once"):
    arguments.resolve_once()
    from sglang.srt.arg_groups.overrides import resolving_view
    arguments = resolving_view(arguments)
print(json.dumps([arguments.attention_backend, arguments.decode_attention_backend]))
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_a_program_that_parses_arguments_loads_plugins_first(
    version: str, tiny_llama: str, distribution: Path
) -> None:
    done = run_python("-c", PARSE, tiny_llama, sglang=version, paths=(distribution,))
    assert done.returncode == 0, done.stderr[-2000:]
    *_, refused, names = done.stdout.splitlines()
    assert refused == "2"
    assert "invalid choice: 'codec'" in done.stderr
    assert json.loads(names) == ["torch_native", "codec"]


SPECULATE = """
import json, sys
import inproc_scheduler; inproc_scheduler._load_plugins()
from sglang.srt.server_args import ServerArgs
more = json.loads(sys.argv[2])
arguments = ServerArgs(model_path=sys.argv[1], device="cpu", speculative_algorithm="STANDALONE",
    speculative_draft_model_path=sys.argv[1], **more)
if hasattr(arguments, "resolve_once"):
    arguments.resolve_once()
    from sglang.srt.arg_groups.overrides import resolving_view
    arguments = resolving_view(arguments)
print(json.dumps([arguments.speculative_attention_mode,
                  arguments.speculative_draft_attention_backend]))
"""
SPECULATING = {
    "verify": ({"attention_backend": "codec"}, ["decode", "torch_native"]),
    "prefill by name": (
        {"decode_attention_backend": "codec", "prefill_attention_backend": "triton"},
        ["decode", "triton"],
    ),
    "draft by name": (
        {"attention_backend": "codec", "speculative_draft_attention_backend": "triton"},
        ["decode", "triton"],
    ),
    "another": ({"attention_backend": "triton"}, ["prefill", None]),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_speculation_verifies_with_codec_and_drafts_with_the_prefills_backend(
    version: str, tiny_llama: str, tmp_path: Path
) -> None:
    program = tmp_path / "speculate.py"
    program.write_text(SPECULATE)
    for given, settled in SPECULATING.values():
        done = run_warm(program, tiny_llama, json.dumps(given), sglang=version)
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout.splitlines()[-1]) == settled
