"""Adapters of FastTree and PAT, on stand-ins that compute attention from what they were given."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from library.attention import fasttree_peer, measure, pat_peer, peers, tables
from library.attention.problem import KVPool, Problem
from library.attention.runner import Unsupported

CPU = torch.device("cpu")


def small_problem(
    tree: str,
    heads: str = "4/2",
    slots: str = "scattered",
    align: int = 1,
    dtype: torch.dtype = torch.float32,
    head_dim: int = 16,
    value_dim: int | None = None,
) -> Problem:
    row = tables.Row("small", tree, heads, *tables.parse_tree(tree))
    pool = KVPool(dtype, dtype, CPU)
    dims = {"head_dim": head_dim, "value_dim": value_dim}
    return Problem(row, pool, slots=slots, align=align, layers=2, **dims)


def attend(problem: Problem, request: int, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Exact attention of one request over `[tokens, num_kv_heads, head_dim]`."""
    q = problem.q[request].double().view(problem.num_kv_heads, -1, problem.head_dim)
    scores = torch.einsum("hgd,nhd->hgn", q, k.double()) * problem.sm_scale
    return torch.einsum("hgn,nhd->hgd", scores.softmax(-1), v.double()).flatten(0, 1)


def test_values_may_be_unlike_keys() -> None:
    problem = small_problem("1,3_64,5", head_dim=24, value_dim=16)
    for peer in ("codec", "eager"):
        (runner,) = peers.ADAPTERS[peer](problem)
        assert runner.run(0).shape == (3, 4, 16)
        assert problem.errors(runner.run(0))[0] < 1e-5
        assert problem.errors(runner.run(1))[0] > 0.1, "layer 1 has other KV"
    assert problem.unique_bytes == (64 + 3 * 5) * 2 * (24 + 16) * 4
    moved = measure.bytes_moved(problem, {"parts": 5})
    assert (moved["q"], moved["o"]) == (3 * 4 * 24 * 4, 3 * 4 * 16 * 4)
    assert moved["partial_read"] == 5 * 4 * 17 * 4
    for peer in ("cascade", "fasttree", "pat"):
        with pytest.raises(Unsupported, match="values of 16 for keys of 24"):
            peers.ADAPTERS[peer](problem)


class StandInFastTree:
    """FastTree's interface: the plan lists every request's tokens, and halves the row tiles."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.entries_dtype: torch.dtype | None = None

    class FastTreeParams:
        def set_values(self, *weights: float) -> None:
            self.weights = weights

        def set_q_tile_sizes(self, sizes: list[int]) -> None:
            self.TSQs = sizes

        def set_kv_tile_sizes(self, sizes: list[int]) -> None:
            self.TSKs = sizes

        def set_kv_group_num(self, group: int) -> None:
            self.group = group

    def fasttree_preparation(self, nodes, pointers, batch, hq, hkv, dim, *rest) -> tuple:
        parameters = rest[-1]
        parameters.set_q_tile_sizes([parameters.TSQs[1]] * 2)
        assert nodes[0].parent == -1
        assert [node.id for node in nodes] == list(range(len(nodes)))
        entries: list[int] = []
        offsets = [0]
        for request in range(batch):
            for node in nodes:  # parents come first, so this is the path from the root
                if request in node.requests:
                    entries += range(pointers[node.id], pointers[node.id + 1])
            offsets.append(len(entries))
        return (torch.tensor(entries + [-1] * 32, dtype=torch.int32), offsets), None

    def fasttree_decode(self, q, k, v, out, entries, offsets, row_tiles, kv_tiles, scale) -> None:
        group = self.problem.num_qo_heads // self.problem.num_kv_heads
        assert [rows * group for rows in row_tiles] == [16, 16], "not what the plan was made for"
        assert scale == self.problem.sm_scale
        assert (entries[-32:] == -1).all()
        self.entries_dtype = entries.dtype
        for request in range(len(offsets) - 1):
            slots = entries[offsets[request] : offsets[request + 1]].long()
            out[request] = attend(self.problem, request, k[slots], v[slots]).to(out.dtype)


@pytest.mark.parametrize("slots", ["scattered", "contiguous"])
@pytest.mark.parametrize(
    ("tree", "heads"),
    [("1,2,8_24,0,9", "4/1"), ("2,4,12_5,6,7", "4/2"), ("6_33", "2/2"), ("1,3_7,0", "8/1")],
)
def test_fasttree_reads_the_problems_own_slots(
    tree: str, heads: str, slots: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = small_problem(tree, heads, slots)
    library = StandInFastTree(problem)
    monkeypatch.setitem(sys.modules, "fasttree", library)
    (runner,) = fasttree_peer.fasttree(problem)
    assert problem.errors(runner.run(0))[0] < 1e-6
    assert problem.errors(runner.run(1))[0] > 0.1, "layer 1 has other KV"
    assert library.entries_dtype == torch.int32
    assert runner.variant == ("empty root" if tree[0] != "1" else "")
    assert runner.notes["fasttree_plan_ms"] > 0
    monkeypatch.setattr(fasttree_peer, "INT32_ELEMENTS", 1)
    (runner,) = fasttree_peer.fasttree(problem)
    assert problem.errors(runner.run(0))[0] < 1e-6
    assert library.entries_dtype == torch.int64


def test_fasttree_gets_one_root_and_its_own_lists() -> None:
    tree = small_problem("2,4,12_5,6,7").tree
    nodes = fasttree_peer.fasttree_nodes(tree)
    assert (nodes[0].seqlen, nodes[0].num_children) == (0, 2)
    assert [node.parent for node in nodes].count(-1) == 1
    assert [node.seqlen for node in nodes[1:]] == tree.lengths
    assert sum(node.num_children for node in nodes) == len(nodes) - 1
    assert sorted(nodes[0].requests) == list(range(12))
    single = small_problem("1,3_7,4").tree
    (root, *leaves) = fasttree_peer.fasttree_nodes(single)
    assert (root.seqlen, root.num_children, len(leaves)) == (7, 3, 3)
    root.requests.append(99)
    assert 99 not in single.readers[0]


def test_fasttree_refuses_a_group_that_fills_no_tile() -> None:
    with pytest.raises(Unsupported, match="3 query heads per KV head"):
        fasttree_peer.fasttree(small_problem("1,3_7,4", "6/2"))


class StandInPat:
    """PAT's interface: the tree keeps the page table, the kernel attends over its pages."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.streams: list[str] = []

    def package(self) -> SimpleNamespace:
        return SimpleNamespace(
            PrefixTreeCPP=StandInTree, prefix_attn_with_kvcache=self.prefix_attn_with_kvcache
        )

    def prefix_attn_with_kvcache(
        self, *, q, k_cache_paged, v_cache_paged, tree, softmax_scale, out
    ) -> None:
        self.streams.append(os.environ[pat_peer.ONE_STREAM])
        assert q.shape == out.shape
        assert softmax_scale == self.problem.sm_scale
        assert tree.device == self.problem.device
        assert k_cache_paged.shape[1] == tree.page
        for request, length in enumerate(tree.lengths):
            pages = tree.table[request, : -(-length // tree.page)].long()
            k, v = (cache[pages].flatten(0, 1)[:length] for cache in (k_cache_paged, v_cache_paged))
            out[request, 0] = attend(self.problem, request, k, v).to(out.dtype)


class StandInTree:
    def __init__(self, page: int) -> None:
        self.page = page
        self.kernel_info = SimpleNamespace(to_gpu=lambda device: setattr(self, "device", device))

    def build_radix_tree(self, lengths: list[int], table: torch.Tensor) -> None:
        assert (table.device.type, table.dtype) == ("cpu", torch.int32)
        self.lengths, self.table = lengths, table

    def pack_schedule(self, tiles: None, group: int, num_kv_heads: int) -> None:
        assert (group, num_kv_heads) == (2, 2)


@pytest.mark.parametrize(
    ("tree", "page"), [("1,2,8_64,32,9", 32), ("1,3_48,5", 16), ("6_33", 32), ("1,1_32,64", 32)]
)
def test_pat_reads_the_problems_own_pages(
    tree: str, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = small_problem(tree, slots="contiguous", align=32, dtype=torch.float16, head_dim=64)
    library = StandInPat(problem)
    monkeypatch.setitem(sys.modules, "prefix_attn", library.package())
    monkeypatch.setenv(pat_peer.ONE_STREAM, "whatever was set")
    runners = pat_peer.pat(problem)
    for runner in runners:
        assert problem.errors(runner.run(0))[0] < 1e-3
        assert problem.errors(runner.run(1))[0] > 0.1, "layer 1 has other KV"
        assert not runner.capturable
    assert library.streams == ["0", "0", "1", "1"]
    assert [runner.variant for runner in runners] == [
        f"streams, page {page}",
        f"one stream, page {page}",
    ]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"slots": "scattered"}, "scattered slots"),
        ({"tree": "1,3_40,5"}, "do not fill pages"),
        ({"heads": "16/1"}, "16 query heads per KV head"),
        ({"head_dim": 16}, "head dimension 16"),
        ({"dtype": torch.float32}, "float32: it has"),
    ],
)
def test_pat_says_why_it_cannot_run_a_row(
    changed: dict, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prefix_attn", None)  # not even importable
    possible = {"tree": "1,3_64,5", "slots": "contiguous", "align": 32, "head_dim": 64}
    problem = small_problem(**possible | {"dtype": torch.float16} | changed)
    with pytest.raises(Unsupported, match=reason):
        pat_peer.pat(problem)


def test_a_peer_that_is_not_installed_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fasttree", "prefix_attn"):
        monkeypatch.setitem(sys.modules, name, None)
    problem = small_problem(
        "1,3_64,5", slots="contiguous", align=32, dtype=torch.float16, head_dim=64
    )
    ceilings = {"copy_TBps": 3.0, "bf16_TFLOPs": 790.0}
    row = measure.measure_row(problem, ["fasttree", "pat"], ceilings, rounds=1, verbose=False)
    assert row["us"] == {}
    assert set(row["why"]) == {"fasttree", "pat"}
    assert all(why.startswith("ModuleNotFoundError") for why in row["why"].values())


def test_every_peer_of_the_default_run_has_an_adapter() -> None:
    assert set(peers.DEFAULT) <= set(peers.ADAPTERS)
    assert set(peers.PREFIX_AWARE) | {"triton", "fa3", "flashinfer"} <= set(peers.DEFAULT)
    assert {*peers.STOCK} & {*peers.PREFIX_AWARE} == set()
    assert np.all([page % 16 == 0 for page in peers.PAGES.values()])
