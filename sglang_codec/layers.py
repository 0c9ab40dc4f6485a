"""Which attention layers of a model the kernels serve, and their common shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sglang_codec.attention_layers import attention_layers, delegated_layers, is_off
from sglang_codec.refusals import UnsupportedConfiguration


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Heads of this rank and the head dimension of one attention layer."""

    layer_id: int
    num_qo_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def key(self) -> tuple[int, int, int]:
        return (self.num_qo_heads, self.num_kv_heads, self.head_dim)


@dataclass(frozen=True, slots=True)
class LayerSupport:
    """`shape` of the layers that the kernels serve; `delegated`: layer id -> why it is not one."""

    shape: LayerShape
    delegated: dict[int, str]

    @classmethod
    def of(cls, model_runner: Any) -> LayerSupport:
        """Look at the attention layers of the loaded model.

        Raises:
            UnsupportedConfiguration: no layer is left for the kernels.
        """
        layers = list(attention_layers(model_runner.model))
        delegated = delegated_layers(model_runner)
        served = [layer for layer in layers if layer.layer_id not in delegated]
        if not served:
            raise _nothing_left(delegated, len(layers))
        shape = _shape(served[0])
        for layer in served[1:]:
            if (other := _shape(layer)).key != shape.key:
                delegated[layer.layer_id] = (
                    f"{other.num_qo_heads}/{other.num_kv_heads} heads of {other.head_dim} beside "
                    f"{shape.num_qo_heads}/{shape.num_kv_heads} of {shape.head_dim}"
                )
        return cls(shape, delegated)

    def delegate(self, reasons: dict[int, str], num_layers: int) -> None:
        """Leave more layers to the stock backend: what only a call of them showed.

        Raises:
            UnsupportedConfiguration: none of the `num_layers` layers of the model is left.
        """
        self.delegated.update(reasons)
        if len(self.delegated) >= num_layers:
            raise _nothing_left(self.delegated, num_layers)

    def check_arguments(self, layer: Any, arguments: dict[str, Any]) -> None:
        """Raise for attention arguments (sinks, score_mod, ...) that the kernels do not have.

        Layers that pass some in every call were delegated when the server started.
        """
        if given := given_arguments(arguments):
            raise UnsupportedConfiguration(
                f"layer {layer.layer_id} passes {', '.join(given)}, which codec does not support; "
                "choose another --attention-backend for this model"
            )


def given_arguments(arguments: dict[str, Any]) -> list[str]:
    """Names of the arguments beyond q, k and v that say something."""
    return [name for name, value in arguments.items() if not is_off(value)]


def _nothing_left(delegated: dict[int, str], num_layers: int) -> UnsupportedConfiguration:
    return UnsupportedConfiguration(
        f"codec: none of the model's {num_layers} attention layers can use codec "
        f"({'; '.join(sorted(set(delegated.values()))) or 'it has none'}); choose another "
        "--attention-backend"
    )


def _shape(layer: Any) -> LayerShape:
    return LayerShape(layer.layer_id, layer.tp_q_head_num, layer.tp_k_head_num, layer.qk_head_dim)
