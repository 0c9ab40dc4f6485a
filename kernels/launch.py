"""Launch configurations: data measured offline, never tuned while serving."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tile:
    """How the tasks of one class are run.

    Args:
        rows: M side of the query tile (requests x GQA group).
        block_kv: KV tokens per step.
        stages: software-pipeline stages of the KV loop. The addresses of K and V wait for the KV
            index, so up to 4 stages the loads of a step overlap with nothing of the same program,
            and 5 is the first depth that does; fewer stages are fewer instructions per task.
    """

    rows: int
    block_kv: int
    stages: int


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """How PAC is launched on one kind of GPU.

    Args:
        small: tasks with few query rows and few tokens, where latency counts.
        large: tasks with more query rows.
        long: tasks with few query rows and many tokens, where bytes in flight count.
        long_tokens: tokens from which a task is long.
        num_warps: warps of a program.
        ctas_per_sm: resident programs per multiprocessor that the grid is made for.
    """

    small: Tile
    large: Tile
    long: Tile
    long_tokens: int
    num_warps: int
    ctas_per_sm: int

    def __post_init__(self) -> None:
        if self.long.rows != self.small.rows or self.large.rows <= self.small.rows:
            raise ValueError(
                f"long tasks have the rows of small ones, large ones more; got {self.small.rows} "
                f"(small), {self.long.rows} (long), {self.large.rows} (large)"
            )

    @property
    def row_tiles(self) -> tuple[int, ...]:
        return (self.small.rows, self.large.rows)

    def num_slots(self, num_sms: int, num_kv_heads: int) -> int:
        """Program slots per KV head of a grid that fills the GPU once."""
        return max(1, num_sms * self.ctas_per_sm // num_kv_heads)


# the interpreter runs one program after another and pays per loop iteration, not per element
INTERPRETED = LaunchConfig(
    Tile(16, 128, 1),
    Tile(64, 128, 1),
    Tile(16, 256, 1),
    long_tokens=1024,
    num_warps=4,
    ctas_per_sm=1,
)
INTERPRETED_SMS = 4

_LARGE_SHARED = LaunchConfig(
    Tile(16, 32, 3), Tile(64, 64, 3), Tile(16, 128, 2), long_tokens=256, num_warps=4, ctas_per_sm=2
)
# 99 KB of shared memory per multiprocessor (sm_86, sm_89, sm_120)
_SMALL_SHARED = LaunchConfig(
    Tile(16, 32, 3), Tile(64, 32, 3), Tile(16, 64, 2), long_tokens=256, num_warps=4, ctas_per_sm=2
)


def launch_config(capability: tuple[int, int], head_dim: int) -> LaunchConfig:
    """The configuration for a GPU of this compute capability."""
    if capability in ((8, 6), (8, 9), (12, 0), (12, 1)):
        return _SMALL_SHARED
    return _LARGE_SHARED
