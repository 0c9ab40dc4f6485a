"""One dummy step at start-up, decode or verify: which layers reach codec, and what they pass."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from sglang_codec.layer_groups import unknown_arguments
from sglang_codec.refusals import UnsupportedConfiguration

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SeenStep:
    """Layer ids that reached the backend; `reasons`: why it cannot serve some of them."""

    reached: set[int] = field(default_factory=set)
    reasons: dict[int, str] = field(default_factory=dict)


def see_a_step(eager_runner: Any, backend: Any) -> SeenStep | None:
    """Decode dummy rows, as SGLang's own warm-up does; None where this model has no such step.

    Raises:
        UnsupportedConfiguration: the step failed, and a layer passed arguments in it.
    """
    runner = eager_runner.model_runner
    if not runner.is_generation:
        return None
    canary = getattr(runner, "canary_manager", None)
    # ranks that share the tokens of a step need one each
    rows, tokens = eager_runner.attn_tp_size, backend.query_rows
    with _watched(backend) as seen, torch.no_grad():
        try:
            eager_runner._dummy_run(
                rows,
                canary and canary.with_active_single_forward_manager(0),
                buffers=eager_runner._alloc_dummy_decode_buffers(rows, num_tokens_per_req=tokens),
            )
        except Exception as error:
            if seen.reasons:
                raise UnsupportedConfiguration(
                    f"codec: it does not support what layers do ({_named(seen.reasons)}), and the "
                    "model does not run without; choose another --attention-backend"
                ) from error
            logger.warning(
                "codec: no decode step could be tried at start-up, so what layers pass to "
                "attention is checked when they first do",
                exc_info=True,
            )
            return None
    return seen


def settle(seen: SeenStep, backend: Any, model_runner: Any) -> None:
    """Leave layers that codec cannot serve to the stock backend, and say which never reach codec.

    Raises:
        UnsupportedConfiguration: no layer is left.
    """
    attention = type(model_runner.attn_backend).__name__
    if seen.reasons:
        backend.serve(backend.layers.without(seen.reasons))
        if "needs_cpu_seq_lens" in vars(model_runner.attn_backend):  # asked when it was made
            model_runner.attn_backend.needs_cpu_seq_lens |= backend.needs_cpu_seq_lens
        logger.info("codec: delegated after a first step: %s", _named(seen.reasons))
    num_layers = backend.layers.num_layers
    if not seen.reached:
        raise UnsupportedConfiguration(
            f"codec: SGLang's {attention} decodes this model's attention layers "
            "itself, none reaches codec; choose another --decode-attention-backend"
        )
    if len(seen.reached) < num_layers:
        logger.warning(
            "codec: only %d of %d attention layers reach it, %s decodes the others",
            len(seen.reached),
            num_layers,
            attention,
        )


@contextmanager
def _watched(backend: Any) -> Iterator[SeenStep]:
    """The backend notes the layers that call it, and leaves out what it does not have."""
    call = "forward_extend" if backend.query_rows > 1 else "forward_decode"
    seen, forward = SeenStep(), getattr(backend, call)

    def noting(q: Any, k: Any, v: Any, layer: Any, *args: Any, **arguments: Any) -> Any:
        seen.reached.add(layer.layer_id)
        if layer.layer_id in backend.layers.delegated:
            return forward(q, k, v, layer, *args, **arguments)
        forward_batch, save, extra = _split(*args, **arguments)
        if unknown := unknown_arguments(layer, extra):
            seen.reasons[layer.layer_id], extra = unknown, {}
        if not backend.layers.serves(layer.layer_id):
            seen.reasons[layer.layer_id] = "is not among the model's modules"
            tokens = forward_batch.batch_size * backend.query_rows
            return q.new_zeros(tokens, layer.tp_q_head_num * layer.v_head_dim)
        return forward(q, k, v, layer, forward_batch, save, **extra)

    setattr(backend, call, noting)
    try:
        yield seen
    finally:
        delattr(backend, call)


def _split(
    forward_batch: Any, save_kv_cache: bool = True, **extra: Any
) -> tuple[Any, bool, dict[str, Any]]:
    return forward_batch, save_kv_cache, extra


def _named(reasons: dict[int, str]) -> str:
    by_reason: dict[str, list[int]] = {}
    for layer_id, reason in reasons.items():
        by_reason.setdefault(reason, []).append(layer_id)
    return "; ".join(
        f"layer{'s' * (len(ids) > 1)} {', '.join(map(str, ids))} {reason}"
        for reason, ids in by_reason.items()
    )
