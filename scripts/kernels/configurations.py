"""Launch configurations as peers of the benchmark; the winner goes to `kernels/launch.py`.

A configuration is `query tiles+tile of bundles/stages/warps/programs per multiprocessor`, a tile
`rows x KV tokens`; a last field may name `e` (early launch), `w` (warp roles) and `r` (weights are
rounded in groups of any size), see `LaunchConfig`: `64x64+128x64+b64x64/5/4/1/we`. For fp8 with
warp roles the steps copied ahead follow the stages: `64x64+128x64+b64x64/3+4/4/1/we`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from library.attention import timing
from library.attention.peers import call_of, plan_of, wrapper_of
from library.attention.problem import Problem
from library.attention.runner import Runner

from sglang_codec import PrefixForest, attention
from sglang_codec.kernels.launch import LaunchConfig, Tile


def parse(text: str) -> tuple[str, LaunchConfig]:
    """The type of --configs."""
    try:
        names, stages, warps, ctas, *flags = text.split("/")
        tiles, bundle = [], None
        for name in names.split("+"):
            tile = Tile(*map(int, name.removeprefix("b").split("x")))
            if name.startswith("b"):
                bundle = tile
            else:
                tiles.append(tile)
        given = set("".join(flags))
        if unknown := given - set("ewr"):
            raise ValueError(f"unknown flags {''.join(sorted(unknown))}")
        roles = {"early_launch": "e" in given, "warp_roles": "w" in given}
        roles["exact_weights"] = "r" not in given
        stages, _, ahead = stages.partition("+")
        numbers = map(int, (stages, warps, ctas))
        roles["ahead"] = int(ahead or 0)
        return text, LaunchConfig(tuple(tiles), bundle, *numbers, **roles)
    except (TypeError, ValueError) as error:
        form = "a configuration is as 64x64+128x64+b64x64/5/4/1/we"
        raise argparse.ArgumentTypeError(f"{text!r}: {error}; {form}") from error


@contextmanager
def without_por() -> Iterator[None]:
    """PAC alone: wrong results, but its time."""
    por = attention.por
    attention.por = lambda *args, **kwargs: None
    try:
        yield
    finally:
        attention.por = por


def configured(config: LaunchConfig, text: str, problem: Problem) -> list[Runner]:
    """Our kernels launched like this; the notes have their plan, and the time of PAC alone."""
    wrapper = wrapper_of(problem, config=config)
    plan_of(wrapper, problem, PrefixForest.from_paths(problem.paths))
    run, layers = call_of(wrapper, problem), problem.layers
    with without_por():
        sampler = timing.make_sampler(problem.device)(run, layers, layers)
        alone = timing.measure({"us": sampler}, layers, rounds=1)
    plan = wrapper.launch_plan.summary()
    return [Runner(run, notes={f"pac_us {text}": alone["us"], f"plan {text}": plan})]
