"""The backend's name, its one frozen configuration, and the reader of `SGLANG_CODEC_*`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

BACKEND_NAME = "codec"  # of `--attention-backend`
PREFIX = "SGLANG_CODEC_"

_BOOLEANS = {
    "1": True, "true": True, "yes": True, "on": True,
    "0": False, "false": False, "no": False, "off": False,
}  # fmt: skip


class InvalidConfiguration(ValueError):
    """A `SGLANG_CODEC_*` variable is unknown or has a value that cannot be used."""


@dataclass(frozen=True, slots=True)
class CodecConfig:
    """Settings of one process; every field is the variable `SGLANG_CODEC_<FIELD NAME>`.

    Args:
        prefill_backend: SGLang backend that prefills under `--attention-backend codec`; by
            default SGLang's choice for the model and the GPU.
        check_sharing: compare on the device, for every shared run, the KV slots of all its readers.
        dump: file to which the backend writes its latest forest and plan as JSON; ranks after the
            first add theirs to its name (``plan.tp1.json``).
        allow_untested_sglang: go on with an SGLang version that was not tried.
    """

    prefill_backend: str | None = None
    check_sharing: bool = False
    dump: str | None = None
    allow_untested_sglang: bool = False

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> CodecConfig:
        """Read the process environment (or `env`).

        Raises:
            InvalidConfiguration: naming the variable, its value and what is accepted.
        """
        env = os.environ if env is None else env
        values: dict[str, Any] = {}
        for name in sorted(n for n in env if n.startswith(PREFIX)):
            if name not in _PARSERS:
                raise InvalidConfiguration(
                    f"{name} is not a variable of codec; accepted are {', '.join(_PARSERS)}"
                )
            values[name.removeprefix(PREFIX).lower()] = _PARSERS[name](name, env[name])
        return cls(**values)


def _boolean(name: str, text: str) -> bool:
    try:
        return _BOOLEANS[text.strip().lower()]
    except KeyError:
        raise InvalidConfiguration(
            f"{name}={text!r} is not a switch; accepted are {', '.join(_BOOLEANS)}"
        ) from None


def _text(name: str, text: str) -> str:
    if not text.strip():
        raise InvalidConfiguration(f"{name} is empty; give it a value or unset it")
    return text.strip()


def _file(name: str, text: str) -> str:
    """A file that can be made or replaced where the process is now."""
    file = _text(name, text)
    folder = os.path.dirname(os.path.abspath(file))
    if not os.path.isdir(folder):
        why = f"{folder} is not a folder; create it or name another file"
    elif os.path.lexists(file) and not (os.path.isfile(file) or os.path.islink(file)):
        why = "it exists and is no file; name a file"
    elif not os.access(folder, os.W_OK | os.X_OK):
        why = f"there is no permission to write in {folder}; allow it or name another file"
    else:
        return file
    raise InvalidConfiguration(f"{name}={file!r} cannot be written: {why}")


# annotations are strings here (PEP 563), so the parser is chosen by name
_PARSER_OF_TYPE: dict[str, Callable[[str, str], Any]] = {"bool": _boolean, "str | None": _text}
_PARSERS = {PREFIX + f.name.upper(): _PARSER_OF_TYPE[str(f.type)] for f in fields(CodecConfig)}
_PARSERS[PREFIX + "DUMP"] = _file
