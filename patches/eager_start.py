"""Look at one decode step before SGLang captures graphs or serves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from sglang_codec.patches.patch import Patch

Look = Callable[[Any], None]


class EagerStart:
    """What to do once the eager runner of one model runner is there."""

    def __init__(self) -> None:
        self._model_runner: Any = None
        self._look: Look | None = None

    @property
    def done(self) -> bool:
        return self._look is None

    def use(self, model_runner: Any, look: Look) -> None:
        self._model_runner, self._look = model_runner, look

    def __call__(
        self, _: None, eager_runner: Any, model_runner: Any, *, run_warmup: bool = True
    ) -> None:
        """AFTER hook. Without warm-up (elastic experts) ranks cannot yet run a step together."""
        if run_warmup and self._look is not None and model_runner is self._model_runner:
            look, self._look, self._model_runner = self._look, None, None
            look(eager_runner)


EAGER_START = EagerStart()

LOOK_AT_A_STEP = Patch(
    target="sglang.srt.model_executor.runner.eager_runner.EagerRunner.__init__",
    hook=HookType.AFTER,
    apply=EAGER_START,
    why="arguments that a layer passes (sinks, score_mod) show only in a call, which without CUDA "
    "graphs would be a request's",
    upstream="with or without graphs each rank makes one EagerRunner before any capture; its "
    "_dummy_run decodes dummy rows through the model on all ranks alike",
    remove_when="attention layers declare the arguments that they pass",
)
