"""What a decode batch carries from SGLang's scheduler to the backend."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_codec.patches.fallbacks import FALLBACKS
from sglang_codec.patches.tree_readers import TreeReader
from sglang_codec.planning.paths import RadixPaths

# of all rows: requests, tree handles, tree-owned tokens, `req_to_token` rows, retractions. By
# column, because comparing five long tuples takes half the time of comparing many short ones.
RowStates = tuple[tuple[Any, ...], ...]
ReadStates = Callable[[Sequence[Any]], RowStates]


@dataclass(frozen=True, slots=True, eq=False)
class CodecBatch:
    """Signature of a decode batch, and the way to its radix paths.

    Args:
        signature: equal signatures mean the same rows with the same tree paths, hence equal forests
            up to the growth of the private tails. A batch with beam rows never equals another.
        reader: reads the tree; `reader_name` names it.
        rows: batch rows, `len(batch.seq_lens)`; rows beyond the requests are private.
    """

    signature: Hashable
    reader: TreeReader
    rows: int

    @property
    def reader_name(self) -> str:
        return self.reader.name

    def read(self) -> RadixPaths:
        """Walk the tree; on the scheduler thread, inside `run_batch`.

        A tree that cannot be read makes the whole batch private and is counted in `FALLBACKS`.
        """
        _, handles, owned_by_tree, *_ = self.signature[1]
        try:
            paths = self.reader.read(handles, owned_by_tree)
        except Exception as error:  # whatever a foreign tree raises, sharing must not be guessed
            FALLBACKS.record(f"reading the tree failed with {type(error).__name__}", error)
            return RadixPaths.private(self.rows)
        if (extra := self.rows - paths.batch) > 0:
            tail = np.full(extra, -1, np.int32)
            paths = RadixPaths(paths.parent, paths.end, np.concatenate([paths.leaf, tail]))
        return paths


def row_states_of(req: Any) -> ReadStates:
    """The function that gives the requests' part of the signature, for this SGLang's `Req`.

    A retracted request may come back to the same row and node with other KV slots behind them. So
    may another request of the same id, hence the object itself and not its id.
    """
    # SGLang 0.5.19 moved the KV fields to `req.kv`; 0.5.17 has an unrelated `kv` that may be None
    return _states_on_request if hasattr(req, "req_pool_idx") else _states_on_kv


def _states_on_request(reqs: Sequence[Any]) -> RowStates:
    return _states(reqs, reqs)


def _states_on_kv(reqs: Sequence[Any]) -> RowStates:
    return _states(reqs, [r.kv for r in reqs])


def _states(reqs: Sequence[Any], kv: Sequence[Any]) -> RowStates:
    """The states of the requests, whose KV fields are on the objects in `kv`."""
    return (
        tuple(reqs),
        tuple([r.last_node for r in reqs]),
        tuple([k.cache_protected_len for k in kv]),
        tuple([k.req_pool_idx for k in kv]),
        tuple([r.retraction_count for r in reqs]),
    )


def make_codec_batch(
    reqs: Sequence[Any], rows: int, reader: TreeReader, row_states: ReadStates
) -> CodecBatch:
    """A `CodecBatch` for these requests, in batch order, and `rows >= len(reqs)` batch rows."""
    # beam rows beyond the requests may be permuted on the device between any two steps
    once = object() if rows > len(reqs) else None
    return CodecBatch((rows, row_states(reqs), once), reader, rows)
