"""Launch configurations: data measured offline, never tuned while serving."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from sglang_codec.attention_shape import AttentionShape

_ENOUGH_ROWS = 4  # of a request, from which on stock kernels use tensor cores, and round for them


@dataclass(frozen=True, slots=True)
class Tile:
    """How the tasks of one class are run.

    Args:
        rows: M side of the query tile (requests x query rows x GQA group).
        block_kv: KV tokens per step.
    """

    rows: int
    block_kv: int


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """How PAC and POR are launched on one kind of GPU.

    Args:
        tiles: query tiles with increasing rows, each a task class.
        bundle: the tile of bundles, the last task class; None for no bundles.
        stages: software-pipeline stages of every KV loop. K and V of a step are loaded
            ``stages - 1`` steps ahead, so with 2 nothing overlaps within a program.
        num_warps: warps of a program.
        ctas_per_sm: resident programs per multiprocessor that the grid is made for.
        early_launch: POR's programs start while PAC's last ones finish, and with `warp_roles` PAC's
            while the kernel before ends, such as the POR of the layer before (programmatic
            dependent launch, from compute capability 9.0).
        warp_roles: `hopper` in place of `portable`: query tiles of 64 and 128 rows, bundles of 64,
            all with 64 KV tokens per step, or all with 128 where rows have no more than 64
            columns, and `stages` steps of KV in shared memory. With values of more than 128
            columns tiles of 64 rows only, and K and V of a step are two stages.
        ahead: with `warp_roles`, steps of an fp8 cache that are copied before they are widened into
            the `stages`: shared memory of its own, half as much a step.
        exact_weights: where a request has fewer than four rows, what rounding takes from the
            softmax weights is multiplied too. FlashInfer uses no tensor cores there and keeps them
            in fp32; FA3 rounds them whatever the group.
    """

    tiles: tuple[Tile, ...]
    bundle: Tile | None
    stages: int
    num_warps: int
    ctas_per_sm: int
    early_launch: bool = False
    warp_roles: bool = False
    ahead: int = 0
    exact_weights: bool = True

    def __post_init__(self) -> None:
        rows = self.row_tiles
        if not rows or any(low >= high for low, high in zip(rows[:-1], rows[1:], strict=True)):
            raise ValueError(f"query tiles need increasing rows, got {rows}")
        steps = {tile.block_kv for tile in (*self.tiles, *([self.bundle] if self.bundle else ()))}
        if self.warp_roles and (rows not in ((64,), (64, 128)) or self.bundle_rows not in (0, 64)):
            raise ValueError(
                f"warp roles need tiles of 64, or of 64 and 128 rows, and bundles of 64: {self}"
            )
        if self.warp_roles and steps not in ({64}, {128}):
            raise ValueError(f"warp roles need steps of 64 or of 128 KV tokens, got {steps}")

    @property
    def row_tiles(self) -> tuple[int, ...]:
        return tuple(tile.rows for tile in self.tiles)

    @property
    def bundle_rows(self) -> int:
        return self.bundle.rows if self.bundle else 0

    @property
    def block_kv(self) -> int:
        """Tokens that chunks are rounded to: a whole step of most tiles."""
        return min(tile.block_kv for tile in self.tiles)

    @property
    def execution_order(self) -> tuple[tuple[int, int, int, bool], ...]:
        """``(class, rows, KV tokens a step, is it the bundles')``, most work first."""
        tiles = enumerate(self.tiles)
        order = [(i, tile.rows, tile.block_kv, False) for i, tile in tiles][::-1]
        if self.bundle:
            own = (len(self.tiles), self.bundle.rows, self.bundle.block_kv, True)
            order.insert(-1, own)
        return tuple(order)

    def weights_are_exact(self, request_rows: int) -> bool:
        """Whether they are for requests of so many rows of a query tile."""
        return self.exact_weights and request_rows < _ENOUGH_ROWS

    def costs_as(self, request_rows: int) -> int:
        """Rows of the request whose cost, as tables have it, is that of one of `request_rows` here.

        Tables are measured with exact weights, which larger requests do not have.
        """
        return request_rows if self.exact_weights else max(request_rows, _ENOUGH_ROWS)

    def num_slots(self, num_sms: int, num_kv_heads: int) -> int:
        """Program slots per KV head of a grid that fills the GPU once."""
        return max(1, num_sms * self.ctas_per_sm // num_kv_heads)


# the interpreter runs one program after another and pays per loop iteration, not per element
INTERPRETED = LaunchConfig(
    (Tile(16, 256), Tile(64, 128)), Tile(32, 128), stages=1, num_warps=4, ctas_per_sm=1
)
INTERPRETED_SMS = 4

_HOPPER = LaunchConfig(
    (Tile(64, 64), Tile(128, 64)),
    Tile(64, 64),
    stages=5,
    num_warps=4,
    ctas_per_sm=1,
    early_launch=True,
    warp_roles=True,
)
# Hopper without warp roles: where Triton has no Gluon
_PLAIN_HOPPER = LaunchConfig(
    (Tile(16, 64), Tile(64, 64)), Tile(64, 64), stages=3, num_warps=4, ctas_per_sm=2
)
# without bundles, on which Triton's passes for its tensor cores fail (3.6 and 3.7)
_BLACKWELL = LaunchConfig((Tile(16, 64), Tile(64, 64)), None, stages=3, num_warps=4, ctas_per_sm=2)
# with a cap and a sink, a window, fp8, or heads that do not fill their columns, ptxas may forget to
# write a register of its tensor cores, which tiles of 32 rows do not use
_LOW_BLACKWELL = dataclasses.replace(_BLACKWELL, tiles=(Tile(16, 64), Tile(32, 64)))
# 164 KB of shared memory per multiprocessor
_AMPERE = LaunchConfig(
    (Tile(16, 64), Tile(64, 32)), Tile(64, 32), stages=3, num_warps=4, ctas_per_sm=2
)
# 99 KB of shared memory per multiprocessor (sm_86, sm_89, sm_120)
_SMALL_SHARED = LaunchConfig(
    (Tile(16, 32), Tile(64, 32)), Tile(64, 32), stages=2, num_warps=4, ctas_per_sm=2
)


# 64 columns: twice the tokens are a step of as many bytes, and half as many waits for one another
_NARROW_HOPPER = dataclasses.replace(
    _HOPPER, tiles=(Tile(64, 128), Tile(128, 128)), bundle=Tile(64, 128)
)
# 192 columns of Q and K: a step is 40 KB, 64 queries are 24
_LONG_KEYS_HOPPER = dataclasses.replace(_HOPPER, stages=4)
# 256 columns of output: twice the warps hold them or, where warps have roles, one computing
# warpgroup, and two and a half steps fill the shared memory
_WIDE_HOPPER = dataclasses.replace(_HOPPER, tiles=(Tile(64, 64),))
# by columns: what was copied ahead takes the place of later stages
_FP8_HOPPER = {
    64: dataclasses.replace(_HOPPER, ahead=4),
    128: dataclasses.replace(_HOPPER, stages=3, ahead=4),
    256: dataclasses.replace(_WIDE_HOPPER, stages=3, ahead=2),
}
_WIDE_PLAIN_HOPPER = LaunchConfig(
    (Tile(16, 32), Tile(32, 32)), Tile(32, 32), stages=3, num_warps=8, ctas_per_sm=1
)
_WIDE_BLACKWELL = dataclasses.replace(_WIDE_PLAIN_HOPPER, bundle=None)
_WIDE_AMPERE = LaunchConfig(
    (Tile(16, 32), Tile(64, 32)), Tile(64, 32), stages=3, num_warps=8, ctas_per_sm=1
)
_WIDE_SMALL_SHARED = LaunchConfig(
    (Tile(16, 16), Tile(64, 16)), Tile(64, 16), stages=3, num_warps=8, ctas_per_sm=1
)


def launch_config(
    capability: tuple[int, int], shape: AttentionShape, *, warp_roles: bool = True
) -> LaunchConfig:
    """The configuration for a GPU of this compute capability.

    Its largest tile, of 128, 64 or 32 rows, is the limit of a request's.

    Args:
        shape: of the layers; those with more than 128 columns, with fp8 K and V, or with a cap have
            their own on some GPUs.
        warp_roles: whether `hopper` can be used, where it is the better kernel.
    """
    is_wide = max(shape.key_dim, shape.value_dim) > 128
    if capability in ((8, 6), (8, 9), (12, 0), (12, 1)):
        return _WIDE_SMALL_SHARED if is_wide else _SMALL_SHARED
    if capability[0] >= 10:
        is_plain = shape.soft_cap is None and shape.window is None and not shape.is_fp8
        if not (is_wide or (is_plain and shape.dims in ("64", "128"))):
            return _LOW_BLACKWELL
        return _WIDE_BLACKWELL if is_wide else _BLACKWELL
    if shape.is_fp8 and warp_roles and capability >= (9, 0):
        # rows that are no power of two, or unlike, are only widened where warps have no roles
        if shape.dims in map(str, _FP8_HOPPER):
            return _FP8_HOPPER[shape.key_dim]
        warp_roles = False
    if capability >= (9, 0) and warp_roles:
        if shape.value_dim > 128:
            return _WIDE_HOPPER
        if max(shape.key_dim, shape.value_dim) <= 64:
            return _NARROW_HOPPER
        return _LONG_KEYS_HOPPER if is_wide else _HOPPER
    if capability >= (9, 0):
        return _WIDE_PLAIN_HOPPER if is_wide else _PLAIN_HOPPER
    return _WIDE_AMPERE if is_wide else _AMPERE
