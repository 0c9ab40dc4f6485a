"""The planner in C: built when first wanted, with the compiler that Triton needs too."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NoReturn

import numpy as np

from sglang_codec.planning.border import check_output, checked_paths
from sglang_codec.planning.cost_model import CostModel
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.packed import PRIVATE_TOKENS, PackedPlan
from sglang_codec.planning.paths import RadixPaths
from sglang_codec.planning.plan import (
    MOST_PIECES,
    PIECE_FIELDS,
    SPAN_INTS,
    TASK_FIELDS,
    Plan,
    PlanCapacity,
    PlanCapacityError,
    PlanLayout,
    PlanSpec,
)

logger = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent / "csrc"
_FLAGS = ("-O2", "-std=c99", "-shared", "-fPIC")
_MOST_TILES = 8
_INT_POINTER = ctypes.POINTER(ctypes.c_int32)


class _Forest(ctypes.Structure):
    _ARRAYS = ("order", "lengths", "parent", "start", "length", "first", "last")
    _fields_ = [
        ("batch", ctypes.c_int32),
        ("num_nodes", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
    ]


class _Paths(ctypes.Structure):
    _fields_ = [
        ("batch", ctypes.c_int32),
        ("num_paths", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("parent", "end", "leaf", "lengths")),
        ("private_tokens", ctypes.c_int32),
    ]


class _Layout(ctypes.Structure):
    _NUMBERS = ("num_classes", "num_slots", "order", "merges", "append_base", "tasks", "size")
    _fields_ = [(name, ctypes.c_int64) for name in ("rows", *_NUMBERS)]


class _Packed(ctypes.Structure):
    _NUMBERS = ("used", "num_spans", "longest_span", "kv_tokens_read", "num_shared", "depth")
    _fields_ = [(name, ctypes.c_int64) for name in (*_NUMBERS, "why", "need")]


class _Curve(ctypes.Structure):
    _fields_ = [
        ("points", ctypes.c_int32),
        ("tokens", ctypes.c_void_p),
        ("us", ctypes.c_void_p),
    ]


class _Spec(ctypes.Structure):
    _INTS = (
        "group",
        "num_tiles",
        "bundle_rows",
        "block_kv",
        "num_slots",
        "headroom",
        "most_pieces",
    )
    _fields_ = [
        *((name, ctypes.c_int32) for name in _INTS),
        ("row_tiles", ctypes.c_int32 * _MOST_TILES),
        ("kv_token_bytes", ctypes.c_double),
        ("partial_bytes", ctypes.c_double),
        ("l2_tokens", ctypes.c_double),
        *((f"most_{name}", ctypes.c_int64) for name in ("tasks", "parts", "kv", "bundle")),
        ("curves", _Curve * (_MOST_TILES + 1)),
    ]


class _Result(ctypes.Structure):
    _COUNTS = (
        "num_tasks",
        "num_bundles",
        "num_pieces",
        "num_parts",
        "num_spans",
        "num_shared",
        "num_classes",
    )
    _fields_ = [
        *((name, ctypes.c_int32) for name in _COUNTS),
        *((name, ctypes.c_int64) for name in ("parts", "kv_entries", "bundle_entries", "ints")),
        ("out", ctypes.c_void_p),
        ("us", ctypes.c_void_p),
        ("why", ctypes.c_int32),
        ("need", ctypes.c_int64),
    ]


# the codes of planner.c -> a size of PlanCapacity
_TOO_LARGE = {2: "kv_index", 3: "bundle_index", 4: "tasks", 5: "parts"}


class NativePlanner:
    """`make_plan` in C, for one spec, cost model and capacity.

    The plans are as good as those of `planner.make_plan` or better: the stages are the same, more
    schedules are tried.
    """

    def __init__(self, spec: PlanSpec, cost_model: CostModel, capacity: PlanCapacity) -> None:
        self.spec, self.capacity = spec, capacity
        self._library = library()
        rows = [*spec.row_tiles, *([spec.bundle_rows] if spec.bundle_rows else [])]
        if len(spec.row_tiles) > _MOST_TILES:
            raise ValueError(
                f"{len(spec.row_tiles)} query tiles, at most {_MOST_TILES} are planned"
            )
        self._layout: tuple[PlanLayout | None, _Layout | None] = (None, None)
        # kept alive: the library reads them
        self._curves = [
            [np.ascontiguousarray(side, np.float64) for side in cost_model.long_curve(row)]
            for row in rows
        ]
        self._native = _Spec(
            spec.group,
            len(spec.row_tiles),
            spec.bundle_rows,
            spec.block_kv,
            spec.num_slots,
            spec.tail_headroom,
            MOST_PIECES,
            (ctypes.c_int32 * _MOST_TILES)(*spec.row_tiles),
            spec.shape.kv_token_bytes,
            spec.shape.partial_bytes,
            spec.l2_tokens,
            capacity.tasks,
            capacity.parts,
            capacity.kv_index,
            capacity.bundle_index,
            (_Curve * (_MOST_TILES + 1))(
                *(
                    _Curve(len(tokens), tokens.ctypes.data, us.ctypes.data)
                    for tokens, us in self._curves
                )
            ),
        )

    def make_plan(self, forest: PrefixForest) -> Plan:
        """Plan one batch; raises PlanCapacityError and ValueError as `planner.make_plan` does."""
        forest = forest.checked()
        self.capacity.check(rows=forest.batch)
        arrays = [getattr(forest, name) for name in _Forest._ARRAYS]
        addresses = [array.__array_interface__["data"][0] for array in arrays]
        result = self._library.codec_plan(
            _Forest(forest.batch, forest.num_nodes, *addresses), self._native
        )
        if not result:
            raise MemoryError("no memory for a plan")
        found = result.contents
        if not found.out:
            why, need = found.why, found.need
            self._library.codec_release(result, None, None)
            self._refuse(why, need)
        ints, us = np.empty(found.ints, np.int32), np.empty(found.num_tasks)
        plan = self._plan(forest, found, ints, us)
        self._library.codec_release(result, *(_address(array) for array in (ints, us)))
        return plan

    def pack_paths(
        self, paths: RadixPaths, lengths: np.ndarray, layout: PlanLayout, out: np.ndarray
    ) -> PackedPlan:
        """`make_plan` and `PlanLayout.pack` of the paths' forest, in one call of the library.

        Args:
            lengths: int32 ``[B]`` KV tokens of each row, of which the last one is private.
            out: int32 ``[layout.size]``.

        Raises:
            PlanCapacityError: as `make_plan` does.
            ValueError: the paths are no tree, `lengths` are not those of their rows, the layout is
                one of other plans, or `out` cannot take it.
        """
        parent, end, leaf, lengths = checked_paths(paths.parent, paths.end, paths.leaf, lengths)
        batch = len(lengths)
        self.capacity.check(rows=batch)
        max_lengths, packed = np.empty(batch, np.int32), _Packed()
        if layout is not self._layout[0]:
            self._layout = layout, self._native_layout(layout)
        check_output(out, layout.size)
        given = _Paths(
            batch, len(parent), *map(_address, (parent, end, leaf, lengths)), PRIVATE_TOKENS
        )
        if not self._library.codec_pack(
            given, self._native, self._layout[1], _address(out), _address(max_lengths), packed
        ):
            self._refuse(packed.why, packed.need)
        found = [getattr(packed, name) for name in _Packed._NUMBERS]
        used, num_spans, longest_span, kv_tokens_read, num_shared, depth = found
        return PackedPlan(
            used,
            num_spans,
            longest_span,
            kv_tokens_read,
            int(lengths.sum()),
            max_lengths,
            num_shared,
            depth,
        )

    def _native_layout(self, layout: PlanLayout) -> _Layout:
        if layout.capacity != self.capacity:
            raise ValueError(
                f"the layout is for plans of {layout.capacity}, the planner for {self.capacity}; "
                "make both with one capacity"
            )
        layout.check(self.spec.num_classes, self.spec.num_slots)
        numbers = (getattr(layout, name) for name in _Layout._NUMBERS)
        return _Layout(layout.capacity.rows, *numbers)

    def _refuse(self, why: int, need: int) -> NoReturn:
        if size := _TOO_LARGE.get(why):
            self.capacity.check(**{size: need})
        raise PlanCapacityError(f"no plan fits {self.capacity}")

    def _plan(self, forest: PrefixForest, found: _Result, ints: np.ndarray, us: np.ndarray) -> Plan:
        """A plan whose arrays are parts of `ints`, in the order of `write_plan`."""
        tasks, pieces, batch = found.num_tasks, found.num_pieces, forest.batch
        done = 0

        def part(*shape: int) -> np.ndarray:
            nonlocal done
            size = 1
            for side in shape:
                size *= side
            done += size
            return ints[done - size : done].reshape(shape)

        return Plan(
            order=forest.order,
            tasks=part(tasks, len(TASK_FIELDS)),
            pieces=part(pieces, len(PIECE_FIELDS)),
            slot_indptr=part(found.num_classes, self.spec.num_slots + 1),
            part_indptr=part(batch + 1),
            part_rows=part(found.num_parts),
            append_base=part(batch),
            max_lengths=part(batch),
            spans=part(found.num_spans, SPAN_INTS),
            node=part(tasks),
            start=part(tasks),
            slot=part(tasks),
            piece_node=part(pieces),
            piece_start=part(pieces),
            absorbed=part(found.num_shared),
            num_parts=found.parts,
            kv_entries=found.kv_entries,
            bundle_entries=found.bundle_entries,
            us=us,
            row_tiles=self.spec.row_tiles,
            lengths=forest.lengths,
        )


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def is_available() -> bool:
    """Whether the planner in C can be used here; says once why not."""
    return _loaded() is not None


def library() -> ctypes.CDLL:
    """The compiled planner. Raises RuntimeError where it cannot be built."""
    loaded = _loaded()
    if loaded is None:
        raise RuntimeError("the planner in C could not be built; see the log")
    return loaded


@functools.cache
def _loaded() -> ctypes.CDLL | None:
    try:
        # held GIL: a call takes microseconds, and the library keeps no lock
        loaded = ctypes.PyDLL(str(build()))
    except (OSError, RuntimeError) as error:
        logger.warning(
            "codec plans in Python, more slowly: %s. Install a C compiler or name one in $CC.",
            error,
        )
        return None
    loaded.codec_plan.argtypes = [ctypes.POINTER(_Forest), ctypes.POINTER(_Spec)]
    loaded.codec_plan.restype = ctypes.POINTER(_Result)
    loaded.codec_release.argtypes = [ctypes.POINTER(_Result), ctypes.c_void_p, ctypes.c_void_p]
    loaded.codec_release.restype = None
    loaded.codec_pack.argtypes = [
        *map(ctypes.POINTER, (_Paths, _Spec, _Layout)),
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.POINTER(_Packed),
    ]
    loaded.codec_pack.restype = ctypes.c_int32
    return loaded


def build() -> Path:
    """Compile the sources unless that was done before; the path of the library.

    Raises:
        RuntimeError: no compiler, or it failed.
    """
    sources = sorted([*_SOURCES.glob("*.h"), *_SOURCES.glob("*.c")])
    key = hashlib.sha256(repr((_FLAGS, platform.machine(), platform.libc_ver())).encode())
    for source in sources:
        key.update(source.read_bytes())
    path = _cache_folder() / f"planner-{key.hexdigest()[:16]}.so"
    if path.exists():
        return path
    compiler = shlex.split(os.environ.get("CC", "")) or _compiler()
    path.parent.mkdir(parents=True, exist_ok=True)
    # several processes may build at once: each its own file, moved into place
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(handle)
    command = [*compiler, *_FLAGS, "-o", name, str(_SOURCES / "planner.c"), "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        os.unlink(name)
        raise RuntimeError(f"cannot run {shlex.join(compiler)}: {error}") from error
    if done.returncode:
        os.unlink(name)
        raise RuntimeError(f"{shlex.join(command)} failed: {done.stderr.strip()[:500]}")
    os.replace(name, path)
    return path


def _compiler() -> list[str]:
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    raise RuntimeError("no C compiler (cc, gcc or clang) was found")


def _cache_folder() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(folder) / "sglang_codec"
