"""A task whose steps both warpgroups took: two states become one, as in POR."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from sglang_codec.kernels.hopper.ring import release
from sglang_codec.kernels.hopper.rows import ROWS, product_layout, step_tokens


@gluon.jit
def rows_of_values(ring, VARIANT: gl.constexpr):
    """The ring as places for states: K and V of 64 tokens have room for 64 rows of fp32."""
    PLACES: gl.constexpr = VARIANT.STAGES * _places_of_step(VARIANT.CLASSES)
    layout: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    return ring.kv._reinterpret(gl.float32, [PLACES, ROWS, VARIANT.VALUE_COLUMNS], layout)


@gluon.constexpr_function
def _places_of_step(classes):
    return step_tokens(classes) // ROWS.value


@gluon.jit
def hand_over(ring, states, result, lse, stage, nth, VARIANT: gl.constexpr):
    """Write a state over the step that was read last, as the nth of its kind."""
    ring.readers.index(stage).slice(0, ROWS).store(lse.to(gl.int32, bitcast=True))
    states.index(stage * _places_of_step(VARIANT.CLASSES)).store(result)
    mbarrier.arrive(ring.handed.index(nth % VARIANT.STAGES), count=1)


@gluon.jit
def take_over(ring, states, result, lse, stage, nth, VARIANT: gl.constexpr):
    """Merge a state with the other warpgroup's, and let go of the step that this lies over."""
    STAGES: gl.constexpr = VARIANT.STAGES
    of_values: gl.constexpr = product_layout(VARIANT.VALUE_COLUMNS)
    values_rows: gl.constexpr = gl.SliceLayout(1, of_values)
    mbarrier.wait(ring.handed.index(nth % STAGES), (nth // STAGES) & 1)
    other_lse = ring.readers.index(stage).slice(0, ROWS).load(lse.type.layout)
    other_lse = other_lse.to(gl.float32, bitcast=True)
    larger = gl.maximum(lse, other_lse)
    reference = gl.where(larger == -float("inf"), 0.0, larger)
    weight = gl.exp2(lse - reference)
    other_weight = gl.exp2(other_lse - reference)
    total = weight + other_weight
    inverse = 1.0 / gl.where(total == 0.0, 1.0, total)
    weight = gl.convert_layout(weight * inverse, values_rows)
    other_weight = gl.convert_layout(other_weight * inverse, values_rows)
    other = states.index(stage * _places_of_step(VARIANT.CLASSES)).load(of_values)
    result = result * weight[:, None] + other * other_weight[:, None]
    lse = gl.where(total == 0.0, -float("inf"), reference + gl.log2(total))
    release(ring.empty.index(stage), False)
    return result, lse
