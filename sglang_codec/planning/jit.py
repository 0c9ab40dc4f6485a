"""Compiles the planner's entries ahead of the first batch: a server never compiles while it serves.

Numba compiles each function by itself down to machine code, with all that it calls, again for each
caller. Here the parts of an entry are only typed and linked, and the entry is optimised once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from numba.core import compiler, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler_machinery import register_pass
from numba.core.extending import lower_builtin, overload, type_callable
from numba.core.imputils import impl_ret_borrowed
from numba.core.typed_passes import NativeLowering
from numba.np.arrayobj import make_array, populate_array

from sglang_codec.planning.compile_cache import CompileCache
from sglang_codec.planning.compiled import PARTS, Entry
from sglang_codec.planning.entries import ENTRIES
from sglang_codec.planning.tables import view

logger = logging.getLogger(__name__)

OPTIONS = {"error_model": "numpy", "no_cfunc_wrapper": True}
_WORTH_A_LINE = 1.0  # seconds


def compile_entries(entries: Sequence[Entry] = ENTRIES) -> None:
    """Compile the entries, or load them as they were compiled before; without a JIT do nothing."""
    if numba.config.DISABLE_JIT:
        return
    start = time.perf_counter()
    for entry in entries:
        dispatcher = numba.njit(**OPTIONS)(entry.function)
        dispatcher._cache = CompileCache(entry.function.__name__)
        dispatcher.compile(tuple(map(_type_of, entry.signature)))
        dispatcher.disable_compile()
        entry.call = dispatcher
    if (seconds := time.perf_counter() - start) > _WORTH_A_LINE:
        logger.info("codec compiled its planner in %.1f s", seconds)


def _type_of(argument: np.dtype | type) -> types.Type:
    if argument is int:
        return types.int64
    return types.Array(numba.from_dtype(argument), 1, "C")


class _Unoptimised(JITCodeLibrary):
    """Code that waits to be linked into that of its caller."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerPart(NativeLowering):
    _name = "codec_lower_part"

    def run_pass(self, state: Any) -> bool:
        state.library = _Unoptimised(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        state.flags.no_compile = True
        super().run_pass(state)
        name = object().__reduce__  # some function of C that is no other: callers know it by this
        state.targetctx.insert_user_function(name, state.cr.fndesc, [state.library])
        state.cr = state.cr._replace(cfunc=name)
        return True


class _PartCompiler(compiler.CompilerBase):
    def define_pipelines(self) -> list[Any]:
        passes = compiler.DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.passes = [
            (_LowerPart if each is NativeLowering else each, name) for each, name in passes.passes
        ]
        passes.finalize()
        return [passes]


def _register(function: Callable[..., Any], allocates: bool) -> None:
    """Tell Numba that entries may call `function`."""
    options = OPTIONS | {"pipeline_class": _PartCompiler}
    if not allocates:
        options["_nrt"] = False
    overload(function, jit_options=options, strict=False)(lambda *_: function)


for _function, _allocates in PARTS.items():
    _register(_function, _allocates)


# Numba's own `array.view` checks what is known here, at twenty times the code
@type_callable(view)
def _type_of_view(_: Any) -> Any:
    return lambda array, dtype: types.Array(dtype.dtype, 1, "C")


@lower_builtin(view, types.Array, types.DTypeSpec)
def _lower_view(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    old = make_array(signature.args[0])(context, builder, args[0])
    new = make_array(signature.return_type)(context, builder)
    itemsize = context.get_constant(types.intp, _itemsize(signature.return_type.dtype))
    nbytes = builder.mul(builder.extract_value(old.shape, 0), old.itemsize)
    populate_array(
        new,
        data=builder.bitcast(old.data, new.data.type),
        shape=[builder.udiv(nbytes, itemsize)],
        strides=[itemsize],
        itemsize=itemsize,
        meminfo=old.meminfo,
        parent=old.parent,
    )
    return impl_ret_borrowed(context, builder, signature.return_type, new._getvalue())


def _itemsize(dtype: Any) -> int:
    return dtype.size if isinstance(dtype, types.Record) else dtype.bitwidth // 8
