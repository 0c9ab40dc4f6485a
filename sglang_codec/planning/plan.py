"""The plan of one decode batch: flat int32 arrays, and how they lie in one device buffer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sglang_codec.attention_shape import AttentionShape
from sglang_codec.planning.border import check_output
from sglang_codec.planning.windows import no_tail

# columns of a task; the kernels read them in this order
TASK_FIELDS = (
    "kv_start",  # first entry in the KV index; of a bundle, in the bundles' own index
    "kv_len",  # tokens now; the device keeps it up to date while open rows grow
    "first",  # first position (index into `order`) of the query tile
    "queries",  # rows in the query tile
    "part",  # partial row of the tile's first query, -1 if the task is all there is to its rows
    "open_row",  # batch row whose length bounds the chunk, -1 if the chunk is closed; bundle: -1;
    # with several query rows of every chunk of a tail: they see as far as the row's length says
    "open_base",  # token at which an open chunk begins; of a bundle, its first piece
    "most",  # tokens up to which an open chunk may grow; of a bundle, its number of pieces
)
PIECE_FIELDS = (
    "kv_start",  # first entry in the KV index
    "most",  # tokens of the piece, up to which it may grow if open
    "open_row",  # batch row whose tail this is, -1 if the piece is closed, see `TASK_FIELDS`
    "readers",  # queries [low, high) of the bundle that see it, low + 65536 * high
)
MOST_PIECES = 128  # of one bundle
# where a run begins in the KV index, or a bundle in its own: 16 bytes, which are loaded at once
ALIGNED_ENTRIES = 4
READ_AHEAD = 256  # entries behind the last of an index that PAC may read, but does not use


SPAN_INTS = 4  # batch row, first token, tokens, first entry
# a program slot's first and last task of each class: 32 bytes, so that one load brings them all
SLOT_INTS = 8
# a row that POR merges: batch row, first and last entry of its part list, unused; 16 bytes, and the
# first record says how many follow and how many rows the plan has
MERGE_INTS = 4


def aligned(entries: np.ndarray) -> np.ndarray:
    """Entries of runs or bundles, rounded up so that the next one begins where it may."""
    return -(-entries // ALIGNED_ENTRIES) * ALIGNED_ENTRIES


_INT32_MAX = np.iinfo(np.int32).max


class PlanCapacityError(ValueError):
    """A plan does not fit the buffers it was made for."""


@dataclass(frozen=True, slots=True)
class PlanSpec:
    """What the planner must know of the kernel and the GPU.

    Args:
        shape: of the layers that are planned for.
        row_tiles: increasing M sizes (requests x query rows x group) that the kernel has; each a
            task class.
        bundle_rows: M size of a bundle, the last task class; 0 for no such class.
        block_kv: granularity of chunks, in tokens.
        num_slots: program slots per KV head.
        tail_headroom: tokens by which a private tail may grow before it must be planned again.
        l2_tokens: KV tokens, all KV heads of a layer, that the L2 cache holds.
    """

    shape: AttentionShape
    row_tiles: tuple[int, ...]
    block_kv: int
    num_slots: int
    tail_headroom: int = 0
    bundle_rows: int = 0
    l2_tokens: float = 0.0

    def __post_init__(self) -> None:
        if reason := self.shape.why_too_many_rows(self.row_tiles[-1]):
            raise ValueError(reason)
        if self.shape.query_rows > 1 and self.shape.seen_tokens:
            raise ValueError(f"windows of several query rows are not planned for: {self.shape}")

    @property
    def num_classes(self) -> int:
        return len(self.row_tiles) + (self.bundle_rows > 0)


@dataclass(frozen=True, slots=True)
class PlanCapacity:
    """Sizes of the buffers a plan must fit.

    Args:
        rows: batch rows. tasks: tasks. parts: partial rows. kv_index: KV index entries.
        bundle_index: entries of the bundles' index; as many as `kv_index` if None.
    """

    rows: int
    tasks: int
    parts: int
    kv_index: int
    bundle_index: int | None = None

    def __post_init__(self) -> None:
        if self.bundle_index is None:
            object.__setattr__(self, "bundle_index", self.kv_index)

    def check(self, **needs: int) -> None:
        """Raise PlanCapacityError if more of a named size is needed than there is."""
        for name, need in needs.items():
            limit = getattr(self, name)
            if need > limit:
                raise PlanCapacityError(
                    f"the plan needs {need} {name} but the buffers hold {limit}; plan a smaller "
                    f"batch or create the buffers with PlanCapacity({name}>={need})"
                )


@dataclass(frozen=True, slots=True)
class Plan:
    """Tasks of one batch, assigned to program slots.

    Args:
        order: int32 ``[B]``, positions -> batch rows.
        tasks: int32 ``[T, 8]``, see `TASK_FIELDS`; sorted by class, then slot, longest first.
            A class is a query tile size; bundles are the last one.
        pieces: int32 ``[P, 4]``, see `PIECE_FIELDS`, bundle after bundle.
        slot_indptr: int32 ``[classes, slots + 1]``, tasks of a slot within a class.
        part_indptr: int32 ``[B + 1]``, partial rows of each batch row in `part_rows`.
        part_rows: int32 ``[P]``, partial rows in token order; -1 for the part of a row that its
            task writes to the output directly.
        num_parts: partial rows that the tasks write.
        append_base: int32 ``[B]``, the KV index entry of token ``t`` of row ``r``'s tail is
            ``append_base[r] + t``; `no_tail` of a row without one.
        max_lengths: int32 ``[B]``, KV tokens up to which the plan serves each row.
        spans: int32 ``[S, 4]``, how the KV index is filled: ``(batch row, first token, tokens,
            first entry)``.
        kv_entries: entries of the KV index in use, headroom included.
        bundle_entries: entries of the bundles' index in use, headroom included.
        node: int32 ``[T]`` forest node of each task, -1 of a bundle; start: int32 ``[T]`` its first
            token, of a bundle 0.
        piece_node: int32 ``[P]`` forest node in which each piece ends; piece_start: int32 ``[P]``.
        slot: int32 ``[T]``; us: float ``[T]`` predicted microseconds.
        row_tiles: M sizes of the query tiles.
        absorbed: bool ``[num_shared]`` nodes that joined their children.
        window: newest tokens that a row sees; 0 for all.
    """

    order: np.ndarray
    tasks: np.ndarray
    pieces: np.ndarray
    slot_indptr: np.ndarray
    part_indptr: np.ndarray
    part_rows: np.ndarray
    num_parts: int
    append_base: np.ndarray
    max_lengths: np.ndarray
    spans: np.ndarray
    kv_entries: int
    bundle_entries: int
    node: np.ndarray
    start: np.ndarray
    piece_node: np.ndarray
    piece_start: np.ndarray
    slot: np.ndarray
    us: np.ndarray
    row_tiles: tuple[int, ...]
    absorbed: np.ndarray
    lengths: np.ndarray = field(repr=False)
    window: int = 0

    @property
    def batch(self) -> int:
        return len(self.order)

    @property
    def num_tasks(self) -> int:
        return len(self.tasks)

    @property
    def num_bundles(self) -> int:
        """Tasks of the last class, if it is that of the bundles."""
        has_bundles = len(self.slot_indptr) > len(self.row_tiles)
        return int(self.slot_indptr[-1, -1] - self.slot_indptr[-1, 0]) if has_bundles else 0

    @property
    def num_slots(self) -> int:
        return self.slot_indptr.shape[1] - 1

    @property
    def slot_load(self) -> np.ndarray:
        """Predicted busy microseconds of each slot."""
        return np.bincount(self.slot, weights=self.us, minlength=self.num_slots)

    @property
    def makespan_us(self) -> float:
        return float(self.slot_load.max(initial=0.0))

    @property
    def kv_tokens_read(self) -> int:
        """KV tokens that the plan reads per KV head, each query tile counted."""
        return int(self.tasks[:, 1].sum())

    @property
    def kv_tokens_stock(self) -> int:
        """KV tokens that a backend reading every row's own sequence would read."""
        return int(np.minimum(self.lengths, self.window or _INT32_MAX).sum(dtype=np.int64))

    def summary(self) -> dict[str, Any]:
        """The figures that describe a plan in one line."""
        load = self.slot_load
        return {
            "batch": self.batch,
            "tasks": self.num_tasks,
            "bundles": self.num_bundles,
            "slots": self.num_slots,
            "parts": self.num_parts,
            "kv_tokens_read": self.kv_tokens_read,
            "kv_tokens_stock": self.kv_tokens_stock,
            "makespan_us": self.makespan_us,
            "mean_load_us": float(load.mean()) if len(load) else 0.0,
        }

    def to_dict(self) -> dict[str, Any]:
        """Summary and tasks as JSON-ready values, for `python -m sglang_codec explain`."""
        return {
            **self.summary(),
            "row_tiles": list(self.row_tiles),
            "task_fields": list(TASK_FIELDS),
            "task_table": self.tasks.tolist(),
            "task_node": self.node.tolist(),
            "task_start": self.start.tolist(),
            "task_slot": self.slot.tolist(),
            "task_us": [round(us, 3) for us in self.us.tolist()],
            "piece_table": self.pieces.tolist(),
            "piece_node": self.piece_node.tolist(),
            "piece_start": self.piece_start.tolist(),
            "order": self.order.tolist(),
            "absorbed": np.flatnonzero(self.absorbed).tolist(),
        }


@dataclass(frozen=True, slots=True)
class PlanLayout:
    """Where the sections of a packed plan begin (int32 elements).

    The sections of fixed size come first (the tasks of each slot by class, `order`, ...), then the
    tasks and the pieces, then the part lists, whose place `merges` carries as absolute offsets,
    then the spans: one contiguous copy uploads a plan, and no address that a captured graph knows
    depends on it.

    `merges` lists the rows that POR has to write, those with most parts first: all that no task
    writes directly. Its first record is ``(listed rows, planned batch, 0, 0)``, the others are
    ``(batch row, first, last, 0)`` with the row's partial rows at ``[first, last)``. The rows from
    the planned batch on, which are in the output only where a captured batch is padded, have no
    parts and need no record.
    """

    capacity: PlanCapacity
    num_classes: int
    num_slots: int
    has_bundles: bool = False  # the last class is that of the bundles

    @classmethod
    def of(cls, capacity: PlanCapacity, spec: PlanSpec) -> PlanLayout:
        """The layout of plans made with `spec`."""
        return cls(capacity, spec.num_classes, spec.num_slots, spec.bundle_rows > 0)

    def __post_init__(self) -> None:
        if 2 * self.num_classes > SLOT_INTS:
            raise ValueError(
                f"{self.num_classes} task classes; a plan has room for {SLOT_INTS // 2}"
            )

    @property
    def task_counts(self) -> tuple[int, int]:
        """Where the number of tasks that are no bundles stands, and that of all tasks."""
        last_slot = (self.num_slots - 1) * SLOT_INTS
        last = last_slot + 2 * self.num_classes - 1
        return (last - 2 if self.has_bundles else last), last

    @property
    def order(self) -> int:
        return self.num_slots * SLOT_INTS

    @property
    def merges(self) -> int:
        return self.order + _aligned(self.capacity.rows)

    @property
    def append_base(self) -> int:
        return self.merges + _aligned((self.capacity.rows + 1) * MERGE_INTS)

    @property
    def tasks(self) -> int:
        return self.append_base + _aligned(self.capacity.rows)

    @property
    def size(self) -> int:
        rows = self.capacity.rows
        # a forest has fewer shared runs than rows and a tail per row, a bundle two rows or more.
        # Pieces: each tail, each run in the bundles at its two ends, the absorbed runs above each
        # bundle; spans: each run on its own and as a piece, each tail, what is above each bundle.
        # Both are 3.5 a row at most. A last resort has no pieces and a span per row.
        pieces = 4 * rows * len(PIECE_FIELDS)
        # a row that its task writes directly has an entry, but no partial row
        parts = self.capacity.parts + rows
        spans = 4 * rows * SPAN_INTS
        return self.tasks + self.capacity.tasks * len(TASK_FIELDS) + pieces + parts + spans

    def check(self, num_classes: int, num_slots: int) -> None:
        """Raise ValueError if plans have other classes or slots than this layout."""
        if (num_classes, num_slots) != (self.num_classes, self.num_slots):
            raise ValueError(
                f"the plan has {num_classes} classes and {num_slots} slots, the buffers were made "
                f"for {self.num_classes} and {self.num_slots}"
            )

    def pack(self, plan: Plan, out: np.ndarray) -> int:
        """Write `plan` into `out` (int32 ``[size]``) and return the number of elements in use.

        The spans come last.

        Raises:
            PlanCapacityError: the plan needs more than `capacity`. ValueError: it is one of another
                layout, or `out` cannot take it.
        """
        check_output(out, self.size)
        self.capacity.check(
            rows=plan.batch,
            tasks=plan.num_tasks,
            parts=plan.num_parts,
            kv_index=plan.kv_entries,
            bundle_index=plan.bundle_entries,
        )
        self.check(plan.slot_indptr.shape[0], plan.num_slots)
        batch = plan.batch
        pieces = self.tasks + plan.tasks.size
        parts = pieces + plan.pieces.size
        need = parts + len(plan.part_rows) + plan.spans.size
        if need > self.size:
            raise PlanCapacityError(
                f"the packed plan needs {need} elements but the layout holds {self.size}; plan a "
                f"smaller batch or create the buffers with PlanCapacity(rows>{self.capacity.rows})"
            )
        bounds = out[: self.order].reshape(self.num_slots, SLOT_INTS)
        bounds[:, : 2 * self.num_classes : 2] = plan.slot_indptr[:, :-1].T
        bounds[:, 1 : 2 * self.num_classes : 2] = plan.slot_indptr[:, 1:].T
        out[self.order : self.order + batch] = plan.order
        rows = rows_to_merge(plan)
        listed = len(rows)
        merges = out[self.merges : self.append_base].reshape(-1, MERGE_INTS)
        merges[0] = listed, batch, 0, 0
        merges[1 : listed + 1, 0] = rows
        merges[1 : listed + 1, 1] = plan.part_indptr[rows] + parts
        merges[1 : listed + 1, 2] = plan.part_indptr[rows + 1] + parts
        merges[1 : listed + 1, 3] = 0
        out[self.append_base : self.append_base + batch] = plan.append_base
        out[self.append_base + batch : self.append_base + self.capacity.rows] = no_tail(plan.window)
        tasks = out[self.tasks : pieces].reshape(plan.tasks.shape)
        tasks[:] = plan.tasks
        # a bundle names its first piece by where that lies in the packed plan
        of_bundle = tasks[plan.num_tasks - plan.num_bundles :, 6]
        of_bundle *= len(PIECE_FIELDS)
        of_bundle += pieces
        out[pieces:parts] = plan.pieces.ravel()
        spans = parts + len(plan.part_rows)
        out[parts:spans] = plan.part_rows
        used = spans + plan.spans.size
        out[spans:used] = plan.spans.ravel()
        return used


def rows_to_merge(plan: Plan) -> np.ndarray:
    """Batch rows that no task writes directly, ``[listed]``: most parts first, then in order."""
    first = plan.part_indptr[:-1]
    parts = plan.part_indptr[1:] - first
    alone = np.flatnonzero(parts == 1)
    direct = alone[plan.part_rows[first[alone]] < 0]
    # int16: NumPy sorts it by radix, and the order of rows with more parts than that is no matter
    key = np.maximum(-parts, -32768).astype(np.int16)
    key[direct] = 1
    return np.argsort(key, kind="stable")[: len(key) - len(direct)]


def _aligned(elements: int) -> int:
    # tasks are read as 32-byte records, so every section begins on such a boundary; and Triton
    # compiles a kernel anew where an offset that was a multiple of 16 no longer is one
    return -(-elements // 16) * 16
