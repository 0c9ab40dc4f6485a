"""Scenario tables: the prefix trees on which published kernels were compared, and controls.

A sequence is one root-to-leaf path with one query per leaf.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from library.trees import Levels, join, parse_tree

HEAD_DIM = 128


@dataclass(frozen=True, slots=True)
class Row(Levels):
    """One scenario: a tree and a head configuration.

    Args:
        table: a name out of `TABLES`.
        name: short name, unique within its table.
        heads: query and KV heads, as in `32/8`.
        nodes: nodes per level, root level first.
        tokens: KV tokens per node at that level; 0 is an empty level.
    """

    table: str
    name: str
    heads: str
    nodes: tuple[int, ...]
    tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        self.check()

    @property
    def num_qo_heads(self) -> int:
        return int(self.heads.split("/")[0])

    @property
    def num_kv_heads(self) -> int:
        return int(self.heads.split("/")[1])

    @property
    def group(self) -> int:
        return self.num_qo_heads // self.num_kv_heads

    def level_tree(self) -> tuple[list[int], list[int], list[int]]:
        """Parent and length of every node in level order, and the leaves."""
        parents: list[int] = []
        lengths: list[int] = []
        above: list[int] = []
        for count, length in zip(self.nodes, self.tokens, strict=True):
            first = len(parents)
            parents += [above[j * len(above) // count] if above else -1 for j in range(count)]
            lengths += [length] * count
            above = list(range(first, first + count))
        return parents, lengths, above


def _rows(table: str, heads: str, named: dict[str, str]) -> list[Row]:
    return [Row(table, name, heads, *parse_tree(spec)) for name, spec in named.items()]


def _kary(branching: int, lengths: list[int]) -> str:
    return f"{join(tuple(branching**i for i in range(len(lengths))))}_{join(tuple(lengths))}"


def _ratio(ratio: float, length: int = 120_000, batch: int = 16) -> str:
    shared = round(ratio * batch * length / (1 + ratio * (batch - 1)))
    return f"1,{batch}_{shared},{length - shared}"


def codec_rows() -> list[Row]:
    """CoDec's five synthetic scenarios, its batch scenario also at a 120,000-token root."""
    named = {f"seq {n}": _kary(2, [4096, 0, 0, n]) for n in (128, 256, 512, 1024, 2048)}
    named |= {f"batch {b}": f"1,{b}_2048,2048" for b in (4, 8, 16, 32, 64)}
    named |= {f"batch120k {b}": f"1,{b}_120000,2048" for b in (4, 8, 16, 32, 64)}
    named |= {f"depth {d}": _kary(2, [1024] * d) for d in (2, 3, 4, 5, 6)}
    named |= {f"ratio {r}": _ratio(r) for r in (0.05, 0.1, 0.2, 0.5, 0.8)}
    named |= {f"shape {k}T": _kary(k, [1024] * 3) for k in (2, 3, 4, 5)}
    named |= {"shape DT": "1,1,1_1024,1024,1024"}
    return _rows("codec", "32/8", named)


FASTTREE_HEADS = ("16/1", "32/8", "32/32")
FASTTREE_TREES = (
    "1,2,64_8,256,32",
    "1,4,256_8,256,32",
    "1,4,8,256_8,256,256,32",
    "1,256_256,32",
    "1,1024_2048,32",
    "1,16,64_1024,256,32",
    "1,4,16,512_1024,256,128,32",
    "1,4,16,64,256,1024_256,8,256,64,32,256",
    "1,10_4000,400",
    "1,2,4,8,16,32,64,128,1024_16,16,16,16,16,16,16,16,16",
    "1,2,4,8,16,32,64,128,1024_256,128,64,16,16,16,16,16,16",
    "1,8,16,32,64,128,1024_256,128,64,16,16,16,16",
    "1,8,16,32,64,256,1024_256,128,64,16,16,16,16",
    "1,16,32,64,128,1024_256,128,64,16,16,16",
    "1,16,32,64,256,1024_256,128,64,16,16,16",
)

PAT_HEADS = ("32/32", "16/8", "32/8", "64/8")
PAT_TREES = (
    "1,10_4096,416",
    "1,256_256,32",
    "1,1024_2048,32",
    "1,2,64_1024,256,256",
    "1,4,256_32,256,32",
    "1,8,512_32,512,256",
    "1,8,512_32,2048,256",
    "1,8,512_512,512,256",
    "1,4,8,256_32,256,256,32",
    "1,4,16,512_1024,256,128,32",
    "1,4,16,64,256,1024_256,32,256,64,32,256",
    "1,16,32,64,128,1024_256,128,64,32,32,32",
    "1,16,32,64,256,1024_256,128,64,32,32,32",
    "1,8,16,32,64,128,1024_256,128,64,32,32,32,32",
    "1,8,16,32,64,256,1024_256,128,64,32,32,32,32",
    "2,8,16,256_256,256,32,32",
    "4,16,256,512_512,32,128,32",
    "8,16,32,256_512,512,256,32",
    "256_1024",
    "256_4096",
)


def _numbered(prefix: str, trees: tuple[str, ...]) -> dict[str, str]:
    return {f"{prefix}-{i}": tree for i, tree in enumerate(trees, 1)}


def fasttree_rows() -> list[Row]:
    named = _numbered("FT", FASTTREE_TREES)
    return [row for heads in FASTTREE_HEADS for row in _rows("fasttree", heads, named)]


def pat_rows() -> list[Row]:
    named = _numbered("PAT", PAT_TREES)
    return [row for heads in PAT_HEADS for row in _rows("pat", heads, named)]


def control_rows() -> list[Row]:
    """Nothing shared: the rows on which a prefix-aware kernel must not lose."""
    named = {f"{b}_{n}": f"{b}_{n}" for b in (1, 8, 64, 256) for n in (1024, 8192)}
    return _rows("controls", "32/8", named)


VERIFY_TREES = {
    "few-shot": "1,64_8192,256",
    "document QA": "1,32_100000,256",
    "RL rollouts": "16,256_2048,512",
    "nothing shared": "64_2048",
    "one request": "1_8448",
}


def verify_rows() -> list[Row]:
    """What a server verifies drafts in: for several query rows per request."""
    return [row for heads in ("32/8", "64/8") for row in _rows("verify", heads, VERIFY_TREES)]


TABLES = {
    "codec": codec_rows,
    "fasttree": fasttree_rows,
    "pat": pat_rows,
    "controls": control_rows,
    "verify": verify_rows,
}
IN_ALL = ("codec", "fasttree", "pat", "controls")

# a dozen rows that span the tables: small and large batches, depths, every head configuration,
# compute-bound and bandwidth-bound, sharing and none
QUICK = (
    ("codec", "batch120k 64", "32/8"),
    ("codec", "depth 6", "32/8"),
    ("codec", "depth 2", "32/8"),
    ("codec", "seq 2048", "32/8"),
    ("codec", "ratio 0.1", "32/8"),
    ("codec", "shape DT", "32/8"),
    ("fasttree", "FT-1", "16/1"),
    ("fasttree", "FT-5", "32/8"),
    ("fasttree", "FT-10", "32/32"),
    ("pat", "PAT-1", "32/8"),
    ("pat", "PAT-11", "64/8"),
    ("pat", "PAT-18", "16/8"),
    ("pat", "PAT-19", "32/8"),
    ("controls", "8_8192", "32/8"),
)
PRESETS = ("quick", *TABLES, "all")


def all_rows() -> Iterator[Row]:
    """Of the tables for one query row per request."""
    for table in IN_ALL:
        yield from TABLES[table]()


def select(
    presets: list[str], heads: list[str] | None = None, only: str | None = None
) -> list[Row]:
    """Rows of the named presets, without duplicates.

    Args:
        presets: names out of `PRESETS`.
        heads: run every selected tree at these head configurations instead of its table's own.
        only: keep rows whose `table name tree` contains this text.
    """
    chosen: dict[Row, None] = {}
    for preset in presets:
        if preset not in PRESETS:
            raise ValueError(f"unknown rows {preset!r}: choose from {', '.join(PRESETS)}")
        for row in TABLES[preset]() if preset in TABLES else all_rows():
            key = (row.table, row.name, row.heads)
            if preset in ("all", row.table) or (preset == "quick" and key in QUICK):
                chosen[row] = None
    if heads:
        chosen = {replace(row, heads=h): None for row in chosen for h in heads}
    return [r for r in chosen if only is None or only in f"{r.table} {r.name} {r.tree}"]
