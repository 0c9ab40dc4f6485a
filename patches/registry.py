"""Every patch of SGLang, and their verified application."""

from __future__ import annotations

import logging
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry

from sglang_codec.patches.decode_line import extend_decode_line
from sglang_codec.patches.eager_start import LOOK_AT_A_STEP
from sglang_codec.patches.eager_view import KEEP_CODEC_BATCH
from sglang_codec.patches.forward_batch import ATTACH_CODEC_BATCH
from sglang_codec.patches.metrics_export import EXPORT_METRICS
from sglang_codec.patches.patch import Patch
from sglang_codec.patches.replay_view import COPY_CODEC_BATCH
from sglang_codec.patches.server_info import ADD_STATE
from sglang_codec.settings import setting

PATCHES: tuple[Patch, ...] = (
    ATTACH_CODEC_BATCH,
    KEEP_CODEC_BATCH,
    COPY_CODEC_BATCH,
    LOOK_AT_A_STEP,
)
# codec serves as well without these
REPORT_PATCHES: tuple[Patch, ...] = (EXPORT_METRICS, ADD_STATE)

logger = logging.getLogger(__name__)


class PatchError(RuntimeError):
    """A patch did not take hold; codec must not serve without it."""


def apply_patches(patches: Sequence[Patch] = PATCHES) -> None:
    """Hook every target that is not hooked yet, and check each one.

    Raises:
        PatchError: a target is missing, or SGLang did not wrap it (it only logs that).
    """
    for patch in patches:
        _resolve(patch)
    for patch in patches:
        if not times_applied(patch):
            _hook(patch)
    for patch in patches:
        if (times := times_applied(patch)) != 1:
            raise PatchError(
                f"codec's hook on {patch.target} is applied {times} times instead of once, and "
                f"{patch.why}. See SGLang's log for the cause, or use another attention backend"
            )


def fit_to_speculation(algorithm: str | None) -> None:
    """Change what only one way of speculating has; its modules are imported where it is used."""
    if algorithm == "NGRAM":
        from sglang_codec.patches.ngram_chains import CHAIN_DRAFTS

        apply_patches([CHAIN_DRAFTS])
    elif algorithm == "DFLASH":
        from sglang_codec.patches.dflash_masks import spare_the_mask

        spare_the_mask()


def spare_unread_masks(model_runner: Any) -> None:
    """Once codec attends in all layers alone, and no one else reads who sees which draft."""
    if getattr(model_runner, "watermark_state", None) is not None:
        return
    if setting(model_runner, "speculative_algorithm") == "NGRAM":
        from sglang_codec.patches.ngram_chains import spare_the_masks

        spare_the_masks()


def apply_report_patches(
    patches: Sequence[Patch] = REPORT_PATCHES,
    decode_line: Callable[[], None] = extend_decode_line,
) -> None:
    """Hook what codec reports through; what cannot be hooked is named in one warning."""
    missing = []
    for patch in patches:
        try:
            apply_patches([patch])
        except Exception as error:  # whatever SGLang has become, serving does not depend on it
            missing.append(f"{patch.why} ({error.__cause__ or error})")
    try:
        decode_line()
    except Exception as error:
        missing.append(f"the decode log line says nothing of codec ({error})")
    if missing:
        logger.warning("codec: it serves, but in this SGLang %s", "; ".join(missing))


def times_applied(patch: Patch) -> int:
    """How many wrappers around the target call this patch's hook."""
    return sum(patch.apply in _closure(function) for function in _wrappers(_resolve(patch)))


def _hook(patch: Patch) -> None:
    # apply_hooks skips a target that another plugin hooked before, and would hook it twice for
    # that plugin if the mark alone were removed: so set the other hooks aside
    HookRegistry.apply_hooks()
    others = HookRegistry._hooks.pop(patch.target, [])
    HookRegistry._patched.discard(patch.target)
    HookRegistry.register(patch.target, patch.apply, patch.hook)
    HookRegistry.apply_hooks()
    HookRegistry._hooks[patch.target][:0] = others


def _resolve(patch: Patch) -> Any:
    try:
        return pkgutil.resolve_name(patch.target)
    except (ImportError, AttributeError) as error:
        raise PatchError(
            f"SGLang has no {patch.target}, which codec needs: {patch.why}. This SGLang version is "
            f"not supported"
        ) from error


def _wrappers(function: Any) -> Iterator[Any]:
    """The function and everything it wraps, bound class methods unbound."""
    while function is not None:
        function = getattr(function, "__func__", function)
        yield function
        function = getattr(function, "__wrapped__", None)


def _closure(function: Any) -> list[Any]:
    return [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
