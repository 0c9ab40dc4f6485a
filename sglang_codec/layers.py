"""Which attention layers of a model the kernels serve, and their common shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sglang_codec.refusals import UnsupportedConfiguration, attention_layers, delegated_layers


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
        delegated = dict(delegated_layers(model_runner.model))
        served = [layer for layer in layers if layer.layer_id not in delegated]
        if not served:
            raise UnsupportedConfiguration(
                f"none of the model's {len(layers)} attention layers can use codec "
                f"({'; '.join(sorted(set(delegated.values()))) or 'it has none'}); choose another "
                "--attention-backend"
            )
        shape = _shape(served[0])
        for layer in served[1:]:
            if (other := _shape(layer)).key != shape.key:
                delegated[layer.layer_id] = (
                    f"{other.num_qo_heads}/{other.num_kv_heads} heads of {other.head_dim} beside "
                    f"{shape.num_qo_heads}/{shape.num_kv_heads} of {shape.head_dim}"
                )
        return cls(shape, delegated)

    def check_arguments(self, layer: Any, arguments: dict[str, Any]) -> None:
        """Raise for attention arguments (sinks, score_mod, ...) that only the call shows."""
        given = [name for name, value in arguments.items() if value is not None]
        if given:
            raise UnsupportedConfiguration(
                f"layer {layer.layer_id} passes {', '.join(given)}, which codec does not support; "
                "choose another --attention-backend for this model"
            )


def _shape(layer: Any) -> LayerShape:
    return LayerShape(layer.layer_id, layer.tp_q_head_num, layer.tp_k_head_num, layer.qk_head_dim)
