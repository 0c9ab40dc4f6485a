"""Launch configurations: data measured offline, never tuned while serving."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tile:
    """One task class: M rows (requests x GQA group), KV tokens a step, pipeline stages."""

    rows: int
    block_kv: int
    stages: int


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """How PAC is launched on one kind of GPU.

    Args:
        tiles: task classes by increasing rows.
        num_warps: warps of a program.
        ctas_per_sm: resident programs per multiprocessor that the grid is made for.
    """

    tiles: tuple[Tile, ...]
    num_warps: int
    ctas_per_sm: int

    @property
    def row_tiles(self) -> tuple[int, ...]:
        return tuple(tile.rows for tile in self.tiles)

    def num_slots(self, num_sms: int, num_kv_heads: int) -> int:
        """Program slots per KV head of a grid that fills the GPU once."""
        return max(1, num_sms * self.ctas_per_sm // num_kv_heads)


# the interpreter runs one program after another and pays per loop iteration, not per element
INTERPRETED = LaunchConfig((Tile(16, 128, 1), Tile(64, 128, 1)), num_warps=4, ctas_per_sm=1)
INTERPRETED_SMS = 4

_TWO_TILES = LaunchConfig((Tile(16, 128, 2), Tile(64, 64, 3)), num_warps=4, ctas_per_sm=2)
# 99 KB of shared memory per multiprocessor (sm_86, sm_89, sm_120)
_SMALL_SHARED = LaunchConfig((Tile(16, 64, 2), Tile(64, 32, 2)), num_warps=4, ctas_per_sm=2)


def launch_config(capability: tuple[int, int], head_dim: int) -> LaunchConfig:
    """The configuration for a GPU of this compute capability."""
    if capability in ((8, 6), (8, 9), (12, 0), (12, 1)):
        return _SMALL_SHARED
    return _TWO_TILES
