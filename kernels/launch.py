"""Launch configurations: data measured offline, never tuned while serving."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tile:
    """One task class, which is one launch of PAC.

    Args:
        rows: M side of the query tile (requests x GQA group).
        block_kv: KV tokens per step.
        stages: software-pipeline stages of the KV loop. The KV index is loaded a step ahead of the
            KV that it addresses, so 3 stages keep one KV block in flight and 5 keep two.
        num_warps: warps of a program.
        ctas_per_sm: resident programs per multiprocessor that the grid is made for.
        max_registers: registers per thread that let so many programs be resident, if the compiler
            would take more.
    """

    rows: int
    block_kv: int
    stages: int
    num_warps: int
    ctas_per_sm: int
    max_registers: int | None = None

    def num_slots(self, num_sms: int, num_kv_heads: int) -> int:
        """Program slots per KV head of a grid that fills the GPU once."""
        return max(1, num_sms * self.ctas_per_sm // num_kv_heads)


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """The task classes of one kind of GPU, by increasing rows."""

    tiles: tuple[Tile, ...]


# the interpreter runs one program after another and pays per loop iteration, not per element
INTERPRETED = LaunchConfig((Tile(16, 128, 1, 4, 1), Tile(64, 128, 1, 4, 1)))
INTERPRETED_SMS = 4

_LARGE_SHARED = LaunchConfig((Tile(16, 32, 5, 4, 4, 128), Tile(64, 64, 3, 4, 2)))
# 99 KB of shared memory per multiprocessor (sm_86, sm_89, sm_120)
_SMALL_SHARED = LaunchConfig((Tile(16, 32, 3, 4, 4, 128), Tile(64, 32, 3, 4, 2)))


def launch_config(capability: tuple[int, int], head_dim: int) -> LaunchConfig:
    """The configuration for a GPU of this compute capability."""
    if capability in ((8, 6), (8, 9), (12, 0), (12, 1)):
        return _SMALL_SHARED
    return _LARGE_SHARED
