"""A patch of SGLang as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.plugins.hook_registry import HookType


@dataclass(frozen=True, slots=True)
class Patch:
    """One hook on one SGLang function.

    Args:
        target: dotted path of the function or method.
        hook: how `apply` runs relative to it.
        apply: the hook, with the signature that SGLang's `HookRegistry` gives this kind.
        why: what fails without it.
        upstream: what the target does in SGLang, as far as the patch relies on it.
        remove_when: the change in SGLang that makes it unnecessary.
    """

    target: str
    hook: HookType
    apply: Callable[..., Any]
    why: str
    upstream: str
    remove_when: str
