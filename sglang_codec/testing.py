"""Forests, paged caches and error budgets for tests and scripts; the library never imports it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.paths import RadixPaths
from sglang_codec.planning.plan import Plan
from sglang_codec.reference import decode_attention, rows_seen

Counts = list[list[tuple[str, int]]]  # per row: (segment id, tokens), root to leaf
Paths = list[list[tuple[str, np.ndarray]]]  # per row: (segment id, KV slots)
Structure = set[tuple[int, int, frozenset[int]]]  # (first token, tokens, batch rows) of each run


def tree_counts(nodes: Sequence[tuple[int, int]], rows: Sequence[tuple[int, int]]) -> Counts:
    """Rows over a tree given by plain integers, so that a property test can draw and shrink it.

    Args:
        nodes: ``(any integer, tokens)``; node ``i`` hangs below node ``integer % (i + 1) - 1``, or
            is a root if that is -1. Tokens may be 0.
        rows: ``(any integer, private tokens)``; the row ends below node ``integer % (N + 1) - 1``.
    """
    above = [choice % (node + 1) - 1 for node, (choice, _) in enumerate(nodes)]
    counts: Counts = []
    for row, (choice, tail) in enumerate(rows):
        node, path = choice % (len(nodes) + 1) - 1, [(f"tail {row}", tail)]
        while node >= 0:
            path.append((f"node {node}", nodes[node][1]))
            node = above[node]
        counts.append(path[::-1])
    return counts


def random_counts(
    seed: int, *, batch: int, nodes: int = 8, longest_run: int = 300, longest_tail: int = 100
) -> Counts:
    """A random forest of `batch` rows over `nodes` segments."""
    rng = np.random.default_rng(seed)

    def draw(size: int, most: int) -> list[tuple[int, int]]:
        choices, tokens = rng.integers(0, 1 << 30, size), rng.integers(0, most + 1, size)
        return list(zip(choices.tolist(), tokens.tolist(), strict=True))

    return tree_counts(draw(nodes, longest_run), draw(batch, longest_tail))


def lengths_of(counts: Counts) -> np.ndarray:
    """int32 ``[B]``: KV tokens of each row."""
    return np.array([sum(tokens for _, tokens in row) for row in counts], np.int32)


def with_slots(counts: Counts, *, seed: int = 0, spare: int = 0, page_size: int = 1) -> Paths:
    """Give every segment its own scattered KV slots.

    Args:
        spare: slots that nobody gets, scattered among the others.
        page_size: segments own whole pages, and fill the last one partly.
    """
    tokens = {name: count for row in counts for name, count in row}
    pages = {name: -(-count // page_size) for name, count in tokens.items()}
    total = sum(pages.values()) + -(-spare // page_size)
    free = np.random.default_rng(seed).permutation(total).astype(np.int32)
    slots, used = {}, 0
    for name, count in tokens.items():
        own = free[used : used + pages[name], None] * page_size + np.arange(page_size)
        slots[name] = own.ravel()[:count].astype(np.int32)
        used += pages[name]
    return [[(name, slots[name]) for name, _ in row] for row in counts]


def rows_of(paths: Paths) -> list[np.ndarray]:
    """The KV slots of each row, in token order."""
    empty = np.zeros(0, np.int32)
    return [np.concatenate([empty, *(slots for _, slots in path)]) for path in paths]


def kv_indices_of(paths: Paths) -> tuple[np.ndarray, np.ndarray]:
    """The batch as ``kv_indptr`` and ``kv_indices``."""
    rows = rows_of(paths)
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return indptr.astype(np.int32), np.concatenate([np.zeros(0, np.int32), *rows])


def radix_paths_of(counts: Counts) -> RadixPaths:
    """What a radix tree would prove: every segment that is not empty is a node, tails too."""
    node_of: dict[str, int] = {}
    parent: list[int] = []
    end: list[int] = []
    leaf: list[int] = []
    for row in counts:
        node, position = -1, 0
        for name, tokens in row:
            position += tokens
            if tokens and name not in node_of:
                node_of[name] = len(parent)
                parent.append(node)
                end.append(position)
            node = node_of.get(name, node)
        leaf.append(node)
    return RadixPaths(*(np.array(values, np.int32) for values in (parent, end, leaf)))


def structure_of(forest: PrefixForest, rows: Sequence[int] | None = None) -> Structure:
    """The runs of a forest and who reads them, without any numbering of nodes or positions.

    Args:
        rows: what to call each batch row; its index if None.
    """
    names = np.arange(forest.batch) if rows is None else np.asarray(rows)
    runs = zip(forest.start, forest.length, forest.first, forest.last, strict=True)
    return {
        (int(start), int(length), frozenset(names[forest.order[first:last]].tolist()))
        for start, length, first, last in runs
        if length
    }


def check_forest(forest: PrefixForest, lengths: Sequence[int]) -> None:
    """Assert what `PrefixForest` promises, whatever it was built from."""
    assert sorted(forest.order.tolist()) == list(range(len(lengths)))
    assert forest.lengths.tolist() == list(lengths)
    shared = forest.num_shared
    assert (forest.length[:shared] > 0).all(), "a shared run is empty"
    assert (forest.readers[:shared] >= 2).all(), "a shared run has one reader"
    assert (forest.parent < np.arange(forest.num_nodes)).all(), "a child precedes its parent"
    assert (forest.parent < shared).all(), "a node hangs below a tail"
    for node, parent in enumerate(forest.parent.tolist()):
        if parent < 0:
            assert forest.start[node] == 0
            continue
        assert forest.start[node] == forest.start[parent] + forest.length[parent]
        assert forest.first[parent] <= forest.first[node] < forest.last[node] <= forest.last[parent]
        if node < shared:
            assert forest.readers[node] < forest.readers[parent], "two runs with equal readers"
    for position, row in enumerate(forest.order.tolist()):
        node, end = shared + position, lengths[row]
        assert (forest.first[node], forest.last[node]) == (position, position + 1)
        while node >= 0:  # the runs of a path tile the row's tokens, from the last to the first
            assert forest.first[node] <= position < forest.last[node]
            assert forest.start[node] + forest.length[node] == end
            end, node = forest.start[node], forest.parent[node]
        assert end == 0


def seen_pieces(
    plan: Plan, kv_index: np.ndarray, task: int, query: int, now: np.ndarray
) -> Iterator[np.ndarray]:
    """KV slots of the pieces of a bundle that one of its queries sees."""
    begin, count = plan.tasks[task, 6:8].tolist()
    for start, most, open_row, readers in plan.pieces[begin : begin + count].tolist():
        if open_row >= 0:
            most = min(most, plan.append_base[open_row] + now[open_row] - start)
        if readers & 0xFFFF <= query < readers >> 16:
            yield kv_index[start : start + most]


@dataclass(frozen=True)
class Problem:
    """A batch with random queries and a cache whose unused slots are NaN."""

    q: torch.Tensor  # [B, Hq, Dk]
    k_buffer: torch.Tensor  # [slots, Hkv, Dk], or [pages, page size, Hkv, Dk]
    v_buffer: torch.Tensor  # Dv in place of Dk
    rows: list[torch.Tensor]  # KV slots of each row
    sm_scale: float
    soft_cap: float | None = None
    sinks: torch.Tensor | None = None  # [Hq]
    window: int = 0  # newest tokens that a row sees, 0 for all
    query_rows: int = 1  # of each row: q has so many times its rows
    k_scale: float = 1.0
    v_scale: float = 1.0

    @property
    def of_layer(self) -> dict[str, Any]:
        """What a layer has beyond q, K, V and its scale, by the names of all who attend."""
        names = ("soft_cap", "sinks", "k_scale", "v_scale")
        return {name: getattr(self, name) for name in names}

    def exact(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The fp64 output and base-2 LSE."""
        k, v = without_pages(self.k_buffer), without_pages(self.v_buffer)
        of_layer = self.of_layer | {"window": self.window, "query_rows": self.query_rows}
        return decode_attention(self.q, k, v, self.rows, self.sm_scale, **of_layer)

    def empty(self) -> torch.Tensor:
        """An output of NaN, ``[B, Hq, Dv]``."""
        shape = (*self.q.shape[:2], self.v_buffer.shape[-1])
        return self.q.new_full(shape, float("nan"))

    def eager(self) -> torch.Tensor:
        """What plain torch makes of it in the dtype of the tensors, on the host."""
        # compute-sanitizer does not see what cuBLAS writes in bf16, and reports who reads it
        q, k, v = (tensor.cpu() for tensor in (self.q, self.k_buffer, self.v_buffer))
        k, v = without_pages(k), without_pages(v)
        rows = rows_seen(self.rows, window=self.window, query_rows=self.query_rows)
        eager = eager_attention(q, k, v, rows, self.sm_scale, **self.of_layer)
        return eager.to(self.q.device)


def make_problem(
    paths: Paths,
    *,
    num_qo_heads: int,
    num_kv_heads: int,
    head_dim: int,
    value_dim: int | None = None,
    dtype: torch.dtype = torch.float32,
    kv_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    page_size: int = 1,
    padding: int = 0,
    query_rows: int = 1,
    seed: int = 0,
) -> Problem:
    """Random tensors for a batch.

    Args:
        kv_dtype: of the cache; `dtype` if None.
        value_dim: `head_dim` if None.
        page_size: above 1 the buffers are 4-D.
        padding: rows beyond the batch. query_rows: of each row, of padding too.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.from_numpy(row.astype(np.int64)) for row in rows_of(paths)]
    used = torch.cat([torch.zeros(1, dtype=torch.int64)[:0], *rows])
    slots = (int(used.max()) if len(used) else 0) // page_size * page_size + 2 * page_size

    def cache(dim: int) -> torch.Tensor:
        buffer = torch.full((slots, num_kv_heads, dim), float("nan"))
        values = torch.randn(slots, num_kv_heads, dim, generator=generator)
        buffer[used] = values[used]
        buffer = buffer.to(device, kv_dtype or dtype)
        return buffer.unflatten(0, (-1, page_size)) if page_size > 1 else buffer

    q_rows = (len(paths) + padding) * query_rows
    q = torch.randn(q_rows, num_qo_heads, head_dim, generator=generator)
    caches = cache(head_dim), cache(value_dim or head_dim)
    q = q.to(device, dtype)
    return Problem(q, *caches, rows, head_dim**-0.5, query_rows=query_rows)


def without_pages(buffer: torch.Tensor) -> torch.Tensor:
    """``[slots, Hkv, D]`` of a paged buffer."""
    return buffer.flatten(0, 1) if buffer.ndim == 4 else buffer


def eager_attention(
    q: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    rows: Sequence[torch.Tensor],
    sm_scale: float,
    *,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """The oracle's computation with every intermediate in the dtype of `q`."""
    out = q.new_zeros(*q.shape[:2], v_buffer.shape[-1])
    num_kv_heads, key_dim = k_buffer.shape[1:]
    for row, slots in enumerate(rows):
        if not len(slots):
            continue
        slots = slots.to(q.device, torch.int64)
        grouped = q[row].view(num_kv_heads, -1, key_dim)
        k, v = k_buffer[slots].to(q.dtype), v_buffer[slots].to(q.dtype)
        scores = torch.einsum("hgd,nhd->hgn", grouped, k) * (sm_scale * k_scale)
        if soft_cap is not None:
            scores = soft_cap * (scores / soft_cap).tanh()
        if sinks is not None:
            sink = sinks.to(scores).view(num_kv_heads, -1, 1)
            scores = torch.cat([scores, sink], -1)
        weights = scores.softmax(-1)[..., : len(slots)]
        out[row] = torch.einsum("hgn,nhd->hgd", weights, v).flatten(0, 1) * v_scale
    return out


def assert_within_low_precision_error(
    actual: torch.Tensor, exact: torch.Tensor, eager: torch.Tensor, *, factor: float = 2.0
) -> None:
    """`actual` may be at most `factor` times as far from fp64 as eager torch in the same dtype.

    One rounding of the largest value is always allowed: eager may be exact by luck.
    """
    assert actual.shape == exact.shape
    if not actual.numel():
        return
    error = (actual.double() - exact.double()).abs()
    assert not error.isnan().any(), "the result has a NaN"
    rounding = torch.finfo(actual.dtype).eps * exact.double().abs().max()
    budget = factor * (eager.double() - exact.double()).abs().max() + rounding
    assert error.max() <= budget, f"error {error.max():.3g} exceeds the budget {budget:.3g}"


def assert_lse_close(actual: torch.Tensor, exact: torch.Tensor) -> None:
    """Log-sum-exp agrees with fp64, and is -inf in the same places."""
    empty = exact == -float("inf")
    assert torch.equal(actual == -float("inf"), empty)
    error = (actual.double() - exact.double())[~empty].abs()
    # scores are summed in fp32 from low-precision products: one part in a thousand of a bit
    assert not error.isnan().any()
    assert error.max() <= 2e-3 if len(error) else True
