"""Add codec's numbers to the internal state that `/server_info` shows."""

from __future__ import annotations

from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from sglang_codec.patches.patch import Patch
from sglang_codec.patches.reports import REPORTS


def add_state(output: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER hook."""
    state = REPORTS.state()
    if state is not None:
        output.internal_state["codec"] = state


ADD_STATE = Patch(
    target="sglang.srt.managers.scheduler.Scheduler.get_internal_state",
    hook=HookType.AFTER,
    apply=add_state,
    why="/server_info says nothing of codec",
    upstream="get_internal_state(request) answers on the scheduler thread with an object whose "
    "internal_state is a dict; the dispatcher binds it after the attention backend is made",
    remove_when="an attention backend can contribute to the internal state",
)
