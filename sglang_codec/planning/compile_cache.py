"""Compiled code from one start to the next, in a folder that is this user's alone."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target
from numba.core.serialize import dumps

logger = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent
_DIGEST_BYTES = hashlib.sha256().digest_size


class CompileCache(NullCache):
    """A cache of one entry, as Numba wants it.

    What is loaded was written by this user for these very sources, this Numba and this processor,
    and is whole; anything else is compiled again. Nothing that happens to a file is an error.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.folder = cache_folder()

    def load_overload(self, sig: Any, target_context: Any) -> CompileResult | None:
        try:
            if self.folder is None or (data := _read(self._path())) is None:
                return None
            target_context.refresh()
            return CompileResult._rebuild(target_context, *pickle.loads(data))
        except Exception as error:
            logger.warning("codec compiles its planner again: %s", error)
            return None

    def save_overload(self, sig: Any, result: CompileResult) -> None:
        if self.folder is None or result.library.has_dynamic_globals:
            return
        try:
            _write(self._path(), dumps(result._reduce()))
        except Exception as error:
            logger.warning("codec compiles its planner at each start: %s", error)

    def _path(self) -> Path:
        assert self.folder is not None
        return self.folder / f"{self._name.strip('_')}-{_key()}.bin"


def cache_folder() -> Path | None:
    """The folder, made if need be; None, with a line in the log, where there can be no safe one."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    # of the package's own, as its parent may have been made with other rights
    folder = base / "sglang_codec" / "planner"
    try:
        if not base.is_absolute():
            raise OSError(f"{base} is no absolute path")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if not (stat.S_ISDIR(found.st_mode) and _is_private(found)):
            raise OSError(f"{folder} is another user's, or another user may write to it")
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise OSError(f"{folder} cannot be written to")
    except OSError as error:
        logger.warning(
            "codec compiles its planner at each start, as there is no cache: %s. Let "
            "XDG_CACHE_HOME name a folder of this user",
            error,
        )
        return None
    return folder


def _is_private(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _key() -> str:
    """What compiled code depends on: Numba looks at the source of the entry only."""
    versions = (sys.version, numba.__version__, llvmlite.__version__, np.__version__)
    flags = sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_"))
    key = hashlib.sha256(
        repr((versions, flags, cpu_target.target_context.codegen().magic_tuple())).encode()
    )
    for source in sorted(_SOURCES.glob("*.py")):
        key.update(source.read_bytes())
    return key.hexdigest()[:32]


def _read(path: Path) -> bytes | None:
    """What `_write` wrote; None where there is no such file."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(file, "rb") as opened:
        found = os.fstat(file)
        if not (stat.S_ISREG(found.st_mode) and _is_private(found)):
            raise OSError(f"{path} is another user's, or another user may write to it")
        data = opened.read()
    if hashlib.sha256(data[_DIGEST_BYTES:]).digest() != data[:_DIGEST_BYTES]:
        raise OSError(f"{path} is damaged")
    return data[_DIGEST_BYTES:]


def _write(path: Path, data: bytes) -> None:
    """Several processes may write at once: each a file of its own, moved into place whole."""
    handle, name = tempfile.mkstemp(dir=path.parent)  # for this user's eyes only
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(data).digest() + data)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
