"""A scenario as tensors: paged KV of several layers, the tree, and the exact answer."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from library.attention.tables import HEAD_DIM, Row

COLD_BYTES = 300e6  # KV touched by one cycle through the layers; several times any L2 so far
MAX_LAYERS = 256
LARGE_LAYER_BYTES = 2e9  # a single layer of this size leaves nothing in L2 for the next call
SLOTS = ("scattered", "contiguous")
SAMPLE = 28  # requests compared with the exact answer
REFERENCE_ELEMENTS = 2**25  # fp64 elements of K held at once by the exact answer


@dataclass(frozen=True)
class Tree:
    """Merged prefix tree: no empty nodes, and no node with the same readers as its parent.

    Args:
        parents: parent of each node, -1 at a root; parents precede children.
        lengths: KV tokens of each node.
        paths: nodes of each request, root to leaf.
    """

    parents: list[int]
    lengths: list[int]
    paths: list[tuple[int, ...]]

    @classmethod
    def of(cls, row: Row, seed: int) -> Tree:
        """The tree of a row, its requests shuffled."""
        parents, lengths, leaves = row.level_tree()
        random.Random(seed).shuffle(leaves)
        raw = [_path_to(leaf, parents, lengths) for leaf in leaves]
        return _merge_equal_readers(raw, lengths)

    @cached_property
    def readers(self) -> list[list[int]]:
        readers: list[list[int]] = [[] for _ in self.parents]
        for request, path in enumerate(self.paths):
            for node in path:
                readers[node].append(request)
        return readers

    @cached_property
    def dfs_order(self) -> list[int]:
        """Requests such that the readers of every node are adjacent."""
        return sorted(range(len(self.paths)), key=lambda r: self.paths[r])


def _path_to(leaf: int, parents: list[int], lengths: list[int]) -> list[int]:
    path: list[int] = []
    node = leaf
    while node >= 0:
        if lengths[node]:
            path.append(node)
        node = parents[node]
    return path[::-1]


def _merge_equal_readers(raw: list[list[int]], lengths: list[int]) -> Tree:
    readers = np.zeros(len(lengths), np.int64)
    for path in raw:
        readers[path] += 1
    number: dict[int, int] = {}  # first raw node of a merged node -> its number
    parents: list[int] = []
    merged_lengths: list[int] = []
    paths: list[tuple[int, ...]] = []
    for path in sorted(raw):  # numbers follow the depth-first order
        above, previous = -1, -1
        for node in path:
            if previous >= 0 and readers[node] == readers[previous]:
                number.setdefault(node, above)
            elif node not in number:
                number[node] = len(parents)
                parents.append(above)
                merged_lengths.append(0)
            above, previous = number[node], node
    for node, merged in number.items():
        merged_lengths[merged] += lengths[node]
    for path in raw:
        paths.append(tuple(dict.fromkeys(number[node] for node in path)))
    return Tree(parents, merged_lengths, paths)


def form_of(dtype: str, kv_dtype: str | None) -> str:
    """What tells reports of one dtype, or of one over a KV cache in another, from others."""
    return "-".join(
        dict.fromkeys(name.removeprefix("torch.") for name in (dtype, kv_dtype or dtype))
    )


class KVPool:
    """One block of random values from which every row cuts its layers: made once per run.

    Args:
        dtype: of queries. kv_dtype: of the values.
    """

    def __init__(
        self, dtype: torch.dtype, kv_dtype: torch.dtype, device: torch.device, seed: int = 0
    ) -> None:
        self.dtype, self.kv_dtype, self.device, self.seed = dtype, kv_dtype, device, seed
        self._values = torch.empty(0, dtype=kv_dtype, device=device)

    def layers(
        self, count: int, num_slots: int, num_kv_heads: int, dims: tuple[int, int]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """K and V of `count` layers, heads of `dims`, all distinct memory."""
        shapes = [(num_slots, num_kv_heads, dim) for dim in dims] * count
        sizes = [math.prod(shape) for shape in shapes]
        if self._values.numel() < sum(sizes):
            self._values = self._values.new_empty(0)  # free, then grow
            generator = torch.Generator(device=self.device).manual_seed(self.seed)
            self._values = self._values.new_empty(sum(sizes))
            for part in self._values.split(2**30):
                wide = part if self.kv_dtype == self.dtype else part.to(self.dtype)
                part.copy_(wide.normal_(generator=generator))
        parts = self._values[: sum(sizes)].split(sizes)
        cut = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        return cut[0::2], cut[1::2]


class Problem:
    """Paged decode attention over a prefix tree, ready for every peer.

    Args:
        row: the scenario.
        pool: where K and V come from; also fixes dtype and device.
        slots: `scattered` (a random permutation of the pool) or `contiguous` (each node a run).
        align: first slot of each node is a multiple of this, for peers with larger pages.
        layers: number of distinct KV layers; by default enough to keep L2 cold.
        value_dim: of a value head, `head_dim` by default.
        window: newest tokens that a request sees; 0 for all.
        has_sinks: whether a logit of each head joins the softmax, without a value.
        query_rows: newest tokens of a request that attend, each to all up to itself.
    """

    def __init__(
        self,
        row: Row,
        pool: KVPool,
        slots: str = "scattered",
        align: int = 1,
        layers: int | None = None,
        seed: int = 0,
        head_dim: int = HEAD_DIM,
        value_dim: int | None = None,
        window: int = 0,
        has_sinks: bool = False,
        query_rows: int = 1,
    ) -> None:
        self.row, self.slots, self.align, self.window = row, slots, align, window
        self.num_qo_heads, self.num_kv_heads = row.num_qo_heads, row.num_kv_heads
        self.head_dim, self.value_dim = head_dim, value_dim or head_dim
        self.dtype, self.kv_dtype, self.device = pool.dtype, pool.kv_dtype, pool.device
        self.batch, self.query_rows = row.batch, query_rows
        self.sm_scale = 1.0 / math.sqrt(head_dim)
        self.tree = Tree.of(row, seed + 1)
        self.node_slots, num_slots = _place(self.tree.lengths, slots, align, seed + 2)
        self.num_slots = num_slots
        self.token_bytes = self.num_kv_heads * sum(self.dims) * pool.kv_dtype.itemsize
        self.layers = layers or layers_to_stay_cold(self.unique_bytes)
        self.k, self.v = pool.layers(self.layers, num_slots, self.num_kv_heads, self.dims)
        generator = torch.Generator(device=pool.device).manual_seed(seed + 3)
        q_shape = (self.batch * query_rows, self.num_qo_heads, head_dim)
        self.q = torch.randn(q_shape, generator=generator, device=pool.device).to(pool.dtype)
        self.sinks = None
        if has_sinks:
            sinks = torch.randn(self.num_qo_heads, generator=generator, device=pool.device)
            self.sinks = sinks.to(pool.dtype)

    @cached_property
    def unique_tokens(self) -> int:
        """Tokens that any request sees."""
        return len(np.unique(self.kv_indices)) if self.window else self.row.unique_tokens

    @property
    def total_tokens(self) -> int:
        """Those that each request sees, together."""
        return len(self.kv_indices) if self.window else self.row.total_tokens

    @property
    def form(self) -> str:
        """The dtypes, of the KV cache too where that has another."""
        return form_of(str(self.dtype), str(self.kv_dtype))

    @property
    def dims(self) -> tuple[int, int]:
        """Of a key and of a value head."""
        return self.head_dim, self.value_dim

    @property
    def unique_bytes(self) -> int:
        return self.unique_tokens * self.token_bytes

    @property
    def total_bytes(self) -> int:
        return self.total_tokens * self.token_bytes

    @property
    def qo_bytes(self) -> int:
        return len(self.q) * self.num_qo_heads * sum(self.dims) * self.dtype.itemsize

    @property
    def flops(self) -> int:
        rows = self.query_rows * self.num_qo_heads
        return 2 * self.total_tokens * rows * sum(self.dims)

    @cached_property
    def paths(self) -> list[list[tuple[int, np.ndarray]]]:
        """Argument of `PrefixForest.from_paths`."""
        return [[(node, self.node_slots[node]) for node in path] for path in self.tree.paths]

    @cached_property
    def request_slots(self) -> list[np.ndarray]:
        return [np.concatenate([self.node_slots[n] for n in path]) for path in self.tree.paths]

    @cached_property
    def seen_slots(self) -> list[np.ndarray]:
        """Of each request what it sees."""
        return [slots[-self.window :] for slots in self.request_slots]

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.array([len(slots) for slots in self.request_slots], np.int32)

    @cached_property
    def kv_indptr(self) -> np.ndarray:
        """Of what requests see, as `kv_indices`: so SGLang's backends cut windows."""
        sizes = [len(slots) for slots in self.seen_slots]
        return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int32)

    @cached_property
    def kv_indices(self) -> np.ndarray:
        return np.concatenate(self.seen_slots)

    def empty(self) -> torch.Tensor:
        """An output of NaN, `[batch * query_rows, num_qo_heads, value_dim]`."""
        return self.q.new_full((len(self.q), self.num_qo_heads, self.value_dim), math.nan)

    def tensor(
        self, values: np.ndarray | list[int], dtype: torch.dtype = torch.int32
    ) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values)).to(device=self.device, dtype=dtype)

    def page_table(self, page: int = 1) -> torch.Tensor:
        """int32 `[batch, pages]`; raises where nodes do not fill whole pages."""
        table = np.zeros((self.batch, -(-int(self.lengths.max()) // page)), np.int32)
        for request, slots in enumerate(self.request_slots):
            pages = slots[::page] // page
            if page > 1 and not self._paged(request, page):
                raise ValueError(f"the tree's nodes do not fill pages of {page} slots")
            table[request, : len(pages)] = pages
        return self.tensor(table)

    def _paged(self, request: int, page: int) -> bool:
        path = self.tree.paths[request]
        whole = all(self.tree.lengths[node] % page == 0 for node in path[:-1])
        return whole and self.slots == "contiguous" and self.align % page == 0

    @cached_property
    def sample(self) -> list[int]:
        """The requests whose outputs are compared: the same ones for every peer."""
        if self.batch <= SAMPLE:
            return list(range(self.batch))
        return sorted(random.Random(1).sample(range(self.batch), SAMPLE))

    @cached_property
    def expected(self) -> torch.Tensor:
        """Exact fp64 outputs `[sample * query_rows, num_qo_heads, value_dim]` of layer 0."""
        return torch.stack([self._exact(row) for row in self._sampled_rows])

    @property
    def _sampled_rows(self) -> list[int]:
        """Rows of q of the sampled requests."""
        rows = self.query_rows
        return [request * rows + nth for request in self.sample for nth in range(rows)]

    def slots_of_row(self, row: int) -> np.ndarray:
        """What a row of q sees."""
        request, nth = divmod(row, self.query_rows)
        slots = self.request_slots[request]
        return slots[: len(slots) - (self.query_rows - 1 - nth)][-self.window :]

    def _exact(self, row: int, layer: int = 0) -> torch.Tensor:
        q = self.q[row].double().view(self.num_kv_heads, -1, self.head_dim) * self.sm_scale
        step = max(256, REFERENCE_ELEMENTS // (self.num_kv_heads * self.head_dim))
        slots = self.tensor(self.slots_of_row(row), torch.int64)
        out = q.new_zeros(*q.shape[:2], self.value_dim)
        lse = torch.full(q.shape[:2], -math.inf, dtype=torch.float64, device=self.device)
        if self.sinks is not None:
            lse = self.sinks.double().view(q.shape[:2])
        for chunk in slots.split(step):
            k = self.k[layer][chunk].double().transpose(0, 1)  # [Hkv, n, D]
            v = self.v[layer][chunk].double().transpose(0, 1)
            scores = q @ k.transpose(1, 2)
            chunk_lse = scores.logsumexp(-1)
            chunk_out = (scores - chunk_lse.unsqueeze(-1)).exp() @ v
            both = torch.logaddexp(lse, chunk_lse)
            out = out * (lse - both).exp().unsqueeze(-1)
            out += chunk_out * (chunk_lse - both).exp().unsqueeze(-1)
            lse = both
        return out.view(self.num_qo_heads, self.value_dim)

    def errors(
        self, out: torch.Tensor, position: torch.Tensor | None = None
    ) -> tuple[float, float]:
        """Relative Frobenius and maximal absolute error of the sampled requests.

        Args:
            out: `[batch * query_rows, num_qo_heads, value_dim]`.
            position: row of `out` that holds each row of q, where not that one.
        """
        rows = self.tensor(self._sampled_rows, torch.int64)
        rows = rows if position is None else position[rows]
        difference = out[rows].double() - self.expected
        relative = difference.norm() / self.expected.norm()
        return float(relative), float(difference.abs().max())


def layers_to_stay_cold(layer_bytes: int) -> int:
    needed = math.ceil(COLD_BYTES / layer_bytes)
    return min(MAX_LAYERS, max(1 if layer_bytes >= LARGE_LAYER_BYTES else 2, needed))


def _place(lengths: list[int], slots: str, align: int, seed: int) -> tuple[list[np.ndarray], int]:
    """Slots of every node, and the pool's size; slot 0 stays unused, as in SGLang's pools."""
    starts = []
    end = max(1, align)
    for length in lengths:
        starts.append(-(-end // align) * align)
        end = starts[-1] + length
    num_slots = -(-end // 256) * 256
    if slots == "scattered":
        where = np.random.default_rng(seed).permutation(num_slots - 1).astype(np.int32) + 1
        where = np.concatenate([np.zeros(1, np.int32), where])
    elif slots == "contiguous":
        where = np.arange(num_slots, dtype=np.int32)
    else:
        raise ValueError(f"unknown slots {slots!r}: choose from {', '.join(SLOTS)}")
    return [where[s : s + n] for s, n in zip(starts, lengths, strict=True)], num_slots
