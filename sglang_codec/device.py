"""What the planner and the kernels need to know of the machine they run on."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from sglang_codec.attention_shape import AttentionShape
from sglang_codec.kernels.launch import INTERPRETED, INTERPRETED_SMS, LaunchConfig, launch_config
from sglang_codec.planning.cost_model import COST_TABLES, CostModel, roofline_cost_model
from sglang_codec.planning.plan import PlanSpec

logger = logging.getLogger(__name__)

_INTERPRETER = "interpreter"


@dataclass(frozen=True)
class Device:
    """One machine: launch configuration, multiprocessors and ceilings."""

    name: str
    config: LaunchConfig
    num_sms: int
    bandwidth: float  # bytes per second
    flops: float  # fp16 matrix operations per second
    l2_bytes: float

    @property
    def is_interpreted(self) -> bool:
        return self.name == _INTERPRETER


@functools.cache
def describe_device(
    device: torch.device, shape: AttentionShape, *, exact_weights: bool = True
) -> Device:
    """The machine behind `device`, as attention of this shape is launched on it.

    Args:
        exact_weights: as of `LaunchConfig`.

    Raises:
        RuntimeError: a CPU device while Triton is not interpreted.
    """
    if device.type != "cuda":
        if os.environ.get("TRITON_INTERPRET") != "1":
            raise RuntimeError(
                f"device {device}: without a CUDA GPU the kernels run in Triton's interpreter; "
                "set TRITON_INTERPRET=1 before the process starts"
            )
        config = dataclasses.replace(INTERPRETED, exact_weights=exact_weights)
        return Device(_INTERPRETER, config, INTERPRETED_SMS, 1e10, 1e11, 0.0)
    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    bandwidth, flops = _ceilings(properties)
    config = launch_config(capability, shape)
    if config.warp_roles and not _has_warp_roles():
        config = launch_config(capability, shape, warp_roles=False)
    return Device(
        properties.name,
        dataclasses.replace(config, exact_weights=exact_weights),
        properties.multi_processor_count,
        bandwidth,
        flops,
        properties.L2_cache_size,
    )


def _has_warp_roles() -> bool:
    """Whether this Triton has what `kernels/hopper` is written in."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return False
    try:
        import sglang_codec.kernels.hopper.kernel  # noqa: F401
    except (ImportError, AttributeError) as error:
        logger.warning("kernels/hopper is not for this Triton, kernels/portable is used: %s", error)
        return False
    return True


def plan_spec(device: Device, shape: AttentionShape, *, tail_headroom: int = 0) -> PlanSpec:
    """The planner's view of a device and an attention shape."""
    config, num_kv_heads = device.config, shape.num_kv_heads
    return PlanSpec(
        shape,
        row_tiles=config.row_tiles,
        block_kv=config.block_kv,
        num_slots=config.num_slots(device.num_sms, num_kv_heads),
        bundle_rows=config.bundle_rows,
        tail_headroom=tail_headroom,
        l2_tokens=device.l2_bytes / (shape.kv_token_bytes * num_kv_heads),
    )


def cost_model(device: Device, spec: PlanSpec) -> CostModel:
    """The measured table of this GPU and head dimensions if there is one, else a roofline."""
    shape = spec.shape
    if not device.is_interpreted:
        table = cost_table(device.name, shape)
        if table.exists():
            return CostModel.from_json(table, device.config.costs_as(shape.request_rows))
    return roofline_cost_model(
        shape,
        num_ctas=spec.num_slots * shape.num_kv_heads,
        bandwidth=device.bandwidth,
        flops=device.flops,
        task_overhead_us=2.0,
    )


def cost_table(gpu: str, shape: AttentionShape) -> Path:
    """Where the table of a GPU is, by its name, head dimensions and bytes an element of K and V."""
    name = "".join(c if c.isalnum() else "_" for c in gpu.lower()).strip("_")
    return COST_TABLES / f"{name}_d{shape.dims.replace('/', '_')}{'_fp8' * shape.is_fp8}.json"


def _ceilings(properties: torch.cuda._CudaDeviceProperties) -> tuple[float, float]:
    """Bytes per second and fp16 matrix operations per second, from the device's own figures."""
    clock = getattr(properties, "clock_rate", 1_500_000) * 1e3
    memory_clock = getattr(properties, "memory_clock_rate", 0) * 1e3
    bus = getattr(properties, "memory_bus_width", 0)
    bandwidth = 2 * memory_clock * bus / 8 * 0.9 or 1e12
    per_sm = {8: 2048, 9: 4096, 10: 8192}.get(properties.major, 1024)
    return bandwidth, per_sm * properties.multi_processor_count * clock * 0.8
