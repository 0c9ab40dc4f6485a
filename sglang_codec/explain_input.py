"""What `explain` accepts: a backend's dump, a hand-written forest, or a tree in short notation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sglang_codec.attention_shape import AttentionShape
from sglang_codec.explain_view import InputError
from sglang_codec.kernels.launch import launch_config
from sglang_codec.planning.cost_model import roofline_cost_model
from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.paths import RadixPaths
from sglang_codec.planning.plan import PlanCapacity, PlanSpec
from sglang_codec.planning.planner import make_plan

_MOST_TOKENS = 2**31 - 1
_MOST_ROWS = 65536
_MOST_SLOTS = 65536
_NO_LIMIT = PlanCapacity(_MOST_TOKENS, _MOST_TOKENS, _MOST_TOKENS, _MOST_TOKENS)
# an H100 SXM: multiprocessors, bytes and 16-bit matrix operations per second that are reached
_H100_CAPABILITY, _H100_SMS, _H100_BANDWIDTH, _H100_FLOPS = (9, 0), 132, 3.0e12, 6.0e14


@dataclass(frozen=True, slots=True)
class Machine:
    """The attention shape, and the H100-like GPU, that a forest without a plan is planned for.

    Args:
        slots: program slots per KV head, in place of the H100's.
    """

    num_kv_heads: int = 8
    group: int = 4
    head_dim: int = 128
    dtype: str = "bfloat16"
    slots: int | None = None

    def __post_init__(self) -> None:
        limits = {
            "num_kv_heads": (1, 1024),
            "group": (1, 16),
            "head_dim": (16, 1024),
        }
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if not least <= value <= most:
                option = f"--{name.removeprefix('num_').replace('_', '-')}"
                raise InputError(f"{option} is {value}; give a number from {least} to {most}")
        if self.slots is not None and not 1 <= self.slots <= _MOST_SLOTS:
            raise InputError(f"--slots is {self.slots}; give a number from 1 to {_MOST_SLOTS}")

    def spec(self) -> PlanSpec:
        heads = self.num_kv_heads * self.group
        shape = AttentionShape.plain(heads, self.num_kv_heads, self.head_dim, self.dtype)
        config = launch_config(_H100_CAPABILITY, shape)
        return PlanSpec(
            shape,
            row_tiles=config.row_tiles,
            block_kv=config.block_kv,
            num_slots=self.slots or config.num_slots(_H100_SMS, self.num_kv_heads),
            bundle_rows=config.bundle_rows,
        )

    def dump(self, forest: PrefixForest, labels: list[str]) -> dict[str, Any]:
        """`forest` planned for this machine, as a backend would dump it."""
        spec = self.spec()
        model = roofline_cost_model(
            spec.shape,
            num_ctas=spec.num_slots * self.num_kv_heads,
            bandwidth=_H100_BANDWIDTH,
            flops=_H100_FLOPS,
            task_overhead_us=2.0,
        )
        plan = make_plan(forest, spec, model, _NO_LIMIT)
        return {"forest": forest.to_dict(), "plan": plan.to_dict(), "labels": labels}


def read_dump(path: Path, machine: Machine) -> dict[str, Any]:
    """The dump in a file, or one made from the forest that it describes.

    Raises:
        InputError: the file cannot be read or does not hold what it should.
    """
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error})") from error
    if isinstance(data, dict):
        if "paths" in data:
            return machine.dump(*forest_of_paths(data["paths"]))
        if "tree" in data:
            forest, _ = forest_of_paths(tree_paths(data["tree"]))
            return machine.dump(forest, [""] * forest.num_nodes)
        if "plan" in data or "totals" in data:
            return data
    raise InputError(
        f'{path} holds none of "plan" (a dump that a server wrote to $SGLANG_CODEC_DUMP), "paths" '
        '(as {"paths": [[["system", 4096], ["question", 32]]]}) or "tree" (as {"tree": '
        '"1,16_4096,256"})'
    )


def tree_paths(text: Any) -> list[list[tuple[str, int]]]:
    """Paths of ``"1,4,16_2048,512,256"``: nodes of each level, then tokens of a node of each level.

    Every node of the last level is a request; the nodes of a level are spread evenly below those of
    the level above.
    """
    example = 'write it as "1,4,16_2048,512,256": nodes per level, then tokens per node of a level'
    try:
        nodes, tokens = ([int(n) for n in half.split(",")] for half in str(text).split("_"))
    except ValueError:
        raise InputError(f"tree {text!r} cannot be read; {example}") from None
    if len(nodes) != len(tokens):
        raise InputError(
            f"tree {text!r} has {len(nodes)} node counts but {len(tokens)} token counts; {example}"
        )
    if nodes[0] < 1 or any(a > b for a, b in zip(nodes, nodes[1:], strict=False)):
        raise InputError(f"tree {text!r}: nodes per level must be positive and never decrease")
    if nodes[-1] > _MOST_ROWS:
        raise InputError(f"tree {text!r} has {nodes[-1]} requests; at most {_MOST_ROWS} are drawn")
    if min(tokens) < 0:
        raise InputError(f"tree {text!r} has a negative number of tokens")

    def path(leaf: int) -> Iterator[tuple[str, int]]:
        for level, (count, length) in enumerate(zip(nodes, tokens, strict=True)):
            yield f"{level}.{leaf * count // nodes[-1]}", length

    return [list(path(leaf)) for leaf in range(nodes[-1])]


def forest_of_paths(paths: Any) -> tuple[PrefixForest, list[str]]:
    """The forest of named segments with token counts, and for each node the segments it holds."""
    rows = _checked(paths)
    node_of: dict[Any, tuple[int, Any, int]] = {}  # id -> node, id above, tokens
    parent: list[int] = []
    end: list[int] = []
    leaf: list[int] = []
    for row, path in enumerate(rows):
        node, above, position = -1, None, 0
        for name, tokens in path:
            position += tokens
            if name not in node_of:
                if tokens:
                    parent.append(node)
                    end.append(position)
                node_of[name] = (len(parent) - 1 if tokens else node, above, tokens)
            known_node, known_above, known_tokens = node_of[name]
            if (known_above, known_tokens) != (above, tokens):
                raise InputError(
                    f"segment {name!r} has {tokens} tokens after {above!r} in row {row}, but "
                    f"{known_tokens} after {known_above!r} before; a segment id names one place in "
                    "the tree, so use another id"
                )
            node, above = known_node, name
        leaf.append(node)
    lengths = [sum(tokens for _, tokens in path) for path in rows]
    unique = sum(tokens for _, _, tokens in node_of.values())
    if max(unique, *lengths) > _MOST_TOKENS:
        raise InputError(f"the forest has more than {_MOST_TOKENS} tokens; use smaller counts")
    radix = RadixPaths(*(np.array(values, np.int32) for values in (parent, end, leaf)))
    forest = PrefixForest.from_radix_paths(radix, np.array(lengths, np.int32))
    return forest, _labels(forest, rows)


def _checked(paths: Any) -> list[list[tuple[Any, int]]]:
    example = "a row is a list of [segment id, tokens], root first"
    if not isinstance(paths, list) or not paths:
        raise InputError(f'"paths" must list at least one row; {example}')
    if len(paths) > _MOST_ROWS:
        raise InputError(f'"paths" has {len(paths)} rows; at most {_MOST_ROWS} are drawn')
    for row, path in enumerate(paths):
        if not isinstance(path, list):
            raise InputError(f"row {row} is {path!r}; {example}")
        for segment in path:
            if not isinstance(segment, list | tuple) or len(segment) != 2:
                raise InputError(f"row {row} has the segment {segment!r}; {example}")
            name, tokens = segment
            if not isinstance(name, str | int):
                raise InputError(f"row {row} has the segment id {name!r}; use a string or a number")
            if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
                raise InputError(
                    f"segment {name!r} of row {row} has {tokens!r} tokens; give a whole number, at "
                    "least 0"
                )
    return paths


def _labels(forest: PrefixForest, rows: list[list[tuple[Any, int]]]) -> list[str]:
    labels = []
    for node in range(forest.num_nodes):
        start, length = int(forest.start[node]), int(forest.length[node])
        position, names = 0, []
        for name, tokens in rows[int(forest.order[forest.first[node]])]:
            if tokens and start <= position < start + length:
                names.append(str(name))
            position += tokens
        labels.append(" + ".join(names))
    return labels
