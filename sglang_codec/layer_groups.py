"""A model's attention layers by shape: each group has a plan of its own, the rest is SGLang's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sglang_codec.attention_layers import attention_layers, is_off, why_unknown
from sglang_codec.attention_shape import AttentionShape
from sglang_codec.device import describe_device
from sglang_codec.kernels.given import are_sinks
from sglang_codec.refusals import UnsupportedConfiguration
from sglang_codec.shape_support import why_unsupported
from sglang_codec.speculation import query_rows


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """The layers of one shape, by their ids."""

    shape: AttentionShape
    layer_ids: tuple[int, ...]

    def __str__(self) -> str:
        return f"{len(self.layer_ids)} of {self.shape}"


@dataclass(frozen=True, slots=True)
class LayerGroups:
    """The groups that the kernels serve, largest first; `delegated`: layer id -> why not."""

    groups: tuple[LayerGroup, ...]
    delegated: dict[int, str]

    @classmethod
    def of(cls, model_runner: Any) -> LayerGroups:
        """Look at the attention layers of the loaded model.

        Raises:
            UnsupportedConfiguration: no layer is left for the kernels.
        """
        interpreted = model_runner.device == "cpu"
        shapes: dict[int, AttentionShape] = {}
        delegated: dict[int, str] = {}
        for layer in attention_layers(model_runner.model):
            shape = shape_of(layer, model_runner)
            reason = why_unsupported(shape, interpreted=interpreted)
            reason = reason or _why_not_on(model_runner.device, shape)
            reason = reason or why_unknown(layer, model_runner)
            if shapes.setdefault(layer.layer_id, shape) != shape:
                reason = reason or f"two layers of this id: {shapes[layer.layer_id]} and {shape}"
            if reason:
                delegated.setdefault(layer.layer_id, reason)
        return cls._by_shape(shapes, delegated)

    def without(self, reasons: Mapping[int, str]) -> LayerGroups:
        """Leave more layers to the stock backend: what only a call of them showed.

        Raises:
            UnsupportedConfiguration: no layer is left.
        """
        shapes = {i: group.shape for group in self.groups for i in group.layer_ids}
        return self._by_shape(shapes, self.delegated | dict(reasons))

    @property
    def num_layers(self) -> int:
        return len(self.delegated) + sum(len(group.layer_ids) for group in self.groups)

    def serves(self, layer_id: int) -> bool:
        return any(layer_id in group.layer_ids for group in self.groups)

    @classmethod
    def _by_shape(
        cls, shapes: Mapping[int, AttentionShape], delegated: dict[int, str]
    ) -> LayerGroups:
        ids: dict[AttentionShape, list[int]] = {}
        for layer_id, shape in shapes.items():
            if layer_id not in delegated:
                ids.setdefault(shape, []).append(layer_id)
        groups = [LayerGroup(shape, tuple(of_shape)) for shape, of_shape in ids.items()]
        if not groups:
            raise UnsupportedConfiguration(
                f"codec: none of the model's {len(delegated)} attention layers can use codec "
                f"({'; '.join(sorted(set(delegated.values()))) or 'it has none'}); choose another "
                "--attention-backend"
            )
        groups.sort(key=lambda group: -len(group.layer_ids))
        return cls(tuple(groups), delegated)


def shape_of(layer: Any, model_runner: Any) -> AttentionShape:
    """The shape of one of SGLang's `RadixAttention` layers over this runner's KV pool."""
    return AttentionShape(
        layer.tp_q_head_num,
        layer.tp_k_head_num,
        layer.qk_head_dim,
        layer.v_head_dim,
        str(model_runner.dtype).removeprefix("torch."),
        str(model_runner.kv_cache_dtype).removeprefix("torch."),
        # SGLang's "no window" is -1 and its "no cap" 0
        window=None if (layer.sliding_window_size or 0) < 0 else layer.sliding_window_size,
        soft_cap=layer.logit_cap if (layer.logit_cap or 0) > 0 else None,
        query_rows=query_rows(model_runner),
    )


def _why_not_on(device: str, shape: AttentionShape) -> str | None:
    """Why the query tiles of this GPU do not hold a request's rows; None if they do."""
    if shape.query_rows == 1:
        return None
    config = describe_device(torch.device(device), shape).config
    return shape.why_too_many_rows(config.row_tiles[-1])


def unknown_arguments(layer: Any, arguments: Mapping[str, Any]) -> str | None:
    """What a call passes beyond q, k and v that the kernels do not take; None if they take all.

    They take sinks, a float for each query head, in any call or none.
    """
    unknown = [name for name, value in arguments.items() if name != "sinks" and not is_off(value)]
    sinks = arguments.get("sinks")
    if isinstance(sinks, torch.Tensor) and not are_sinks(sinks, layer.tp_q_head_num):
        unknown.append(f"sinks {tuple(sinks.shape)} of {sinks.dtype}")
    elif not (isinstance(sinks, torch.Tensor) or is_off(sinks)):
        unknown.append(f"sinks as {type(sinks).__name__}")
    return f"passes {', '.join(unknown)}" if unknown else None


def check_arguments(layer: Any, arguments: Mapping[str, Any]) -> None:
    """Raise for attention arguments (score_mod, ...) that the kernels do not have.

    Layers that pass some in every call were delegated when the server started.
    """
    if unknown := unknown_arguments(layer, arguments):
        raise UnsupportedConfiguration(
            f"layer {layer.layer_id} {unknown}, which codec does not support; choose another "
            "--attention-backend for this model"
        )
