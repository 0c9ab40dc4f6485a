"""Launch configurations: what they refuse, and what each GPU gets."""

from __future__ import annotations

import dataclasses

import pytest

from sglang_codec.attention_shape import AttentionShape
from sglang_codec.kernels.launch import LaunchConfig, Tile, launch_config

SHAPE = AttentionShape.plain(32, 8, 128)
ROLES = launch_config((9, 0), SHAPE)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"tiles": (Tile(64, 64), Tile(64, 64))}, "increasing rows"),
        ({"tiles": (Tile(16, 64), Tile(64, 64))}, "64 and 128 rows"),
        ({"tiles": (Tile(128, 64),)}, "64 and 128 rows"),
        ({"bundle": Tile(32, 64)}, "bundles of 64"),
        ({"tiles": (Tile(64, 64), Tile(128, 32))}, "steps of 64 or of 128 KV tokens"),
        ({"tiles": (Tile(64, 64), Tile(128, 128))}, "steps of 64 or of 128 KV tokens"),
        ({"bundle": Tile(64, 32)}, "steps of 64 or of 128 KV tokens"),
    ],
)
def test_warp_roles_refuse_what_their_kernel_does_not_have(
    change: dict[str, object], problem: str
) -> None:
    assert ROLES.warp_roles
    with pytest.raises(ValueError, match=problem):
        dataclasses.replace(ROLES, **change)


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_wide_heads_have_no_large_tile_where_one_warpgroup_computes(
    capability: tuple[int, int],
) -> None:
    wide = launch_config(capability, AttentionShape.plain(32, 8, 256))
    assert wide != launch_config(capability, SHAPE)
    assert not (wide.warp_roles and 128 in wide.row_tiles)


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
def test_narrow_heads_are_launched_as_those_that_hold_them(capability: tuple[int, int]) -> None:
    for dim in (80, 96):
        assert launch_config(capability, AttentionShape.plain(32, 8, dim)) == launch_config(
            capability, SHAPE
        )


def test_rows_of_64_columns_take_steps_of_as_many_bytes() -> None:
    narrow = launch_config((9, 0), AttentionShape.plain(64, 8, 64))
    assert narrow.warp_roles
    assert narrow.block_kv * 64 == ROLES.block_kv * 128
    assert (narrow.row_tiles, narrow.bundle_rows) == (ROLES.row_tiles, ROLES.bundle_rows)


def test_long_keys_have_large_tiles_with_fewer_steps_at_hand() -> None:
    shape = AttentionShape(64, 4, 192, 128, "bfloat16", "bfloat16")
    config = launch_config((9, 0), shape)
    assert config.warp_roles
    assert config.row_tiles == ROLES.row_tiles
    assert config.stages < ROLES.stages


def test_bundles_are_optional() -> None:
    assert dataclasses.replace(ROLES, bundle=None).bundle_rows == 0


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize("warp_roles", [True, False])
def test_only_hopper_has_warp_roles(capability: tuple[int, int], warp_roles: bool) -> None:
    config = launch_config(capability, SHAPE, warp_roles=warp_roles)
    assert isinstance(config, LaunchConfig)
    assert config.warp_roles == (warp_roles and capability == (9, 0))
    # every program of a multiprocessor has a slot, whatever the number of KV heads
    assert config.num_slots(132, 8) == 132 * config.ctas_per_sm // 8
    assert config.num_slots(4, 128) == 1
