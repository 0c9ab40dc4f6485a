"""The records that the planner's stages pass on, in arrays that compile to plain memory.

Every field is 64 bits wide: one kind of allocation serves them all, and sums need no second type.
"""

from __future__ import annotations

import numpy as np

from sglang_codec.planning.compiled import compiled


def _record(ints: str, floats: str = "") -> np.dtype:
    fields = [(name, np.int64) for name in ints.split()]
    return np.dtype((np.record, fields + [(name, np.float64) for name in floats.split()]))


MOST_TILES = 8
MOST_POINTS = 64  # of a curve
# `PlanSpec`, `PlanCapacity` and the cost model: microseconds of a task of each class over its
# tokens at increasing points, class after class, that of bundles last
MACHINE = np.dtype(
    (
        np.record,
        [
            *_record(
                "request_rows query_rows bundle_rows block_kv num_slots headroom num_tiles points "
                "most_pieces most_tasks most_parts most_kv most_bundle cut cut_size in_turn window",
                "kv_token_bytes partial_bytes l2_tokens",
            ).descr,
            ("row_tiles", np.int64, (MOST_TILES,)),
            ("tokens", np.float64, ((MOST_TILES + 1) * MOST_POINTS,)),
            ("us", np.float64, ((MOST_TILES + 1) * MOST_POINTS,)),
        ],
    )
)
# a run of KV tokens and who reads it, see `PrefixForest`
NODE = _record("parent start length first last")
# how the tokens of a node reach its readers: its first token where absorbed ancestors are in front;
# of a shared run whether it is absorbed itself, its readers that are whole units, `[first, last)`,
# and the runs, bundles and single rows right below
WAY = _record("start absorbed first last children")
# positions `[first, last)` that are one task with all of their tails, or one row; the deepest run
# that it is whole in, or -1
UNIT = _record("first last above")
# tokens that are read on their own for the positions `[first, last)`, from `offset` of the KV index
RUN = _record("node start length first last offset is_tail")
# tokens that the queries `[low, high)` of a bundle see, up to the end of a node
PIECE = _record("unit node start length offset low high is_tail")
# positions `[first, last)` and pieces `[begin, end)`
BUNDLE = _record("first last begin end")
# how the KV index is filled, see `Plan.spans`
SPAN = _record("row start tokens entry")
# a query tile of a run, to be cut along the KV axis; share: of the cost model's time, 1 unless
# other tiles read the same tokens
ITEM = _record("run first queries tile start tokens", "share us")
# `tokens` of the item `source` from its token `begin` on, or the bundle -1 - `source`; needs_part:
# it leaves a partial result instead of writing the output
TASK = _record("source begin first queries tokens slot needs_part", "us")
# a task as the kernels are told of it, see `TASK_FIELDS`, and what only the host knows of it
KERNEL_TASK = _record("kv_start kv_len first queries part open_row open_base most")
NOTE = _record("node start slot", "us")
# something to be sorted
KEY = _record("place", "key")


def view(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The memory of a table, or of int64, as another one."""
    return array.view(dtype)


@compiled
def ints(count: int) -> np.ndarray:
    """int64 ``[count]`` zeros; the memory of every table."""
    return np.zeros(count, np.int64)


@compiled
def nodes_of(count: int) -> np.ndarray:
    return view(ints(5 * count), NODE)


@compiled
def tasks_of(count: int) -> np.ndarray:
    return view(ints(8 * count), TASK)


@compiled
def keys_of(count: int) -> np.ndarray:
    return view(ints(2 * count), KEY)
