"""What a decode batch carries from SGLang's scheduler to the backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ref

import numpy as np

from sglang_codec.patches.beam_rows import BeamRows, with_members
from sglang_codec.patches.fallbacks import FALLBACKS
from sglang_codec.patches.kept_paths import KeptBatches, RowStates, differing
from sglang_codec.patches.tree_readers import weak
from sglang_codec.planning.paths import RadixPaths

ReadStates = Callable[[Sequence[Any]], RowStates]


@dataclass(frozen=True, slots=True, eq=False)
class CodecBatch:
    """Signature of a decode batch, and the way to its radix paths.

    Args:
        signature: equal signatures mean the same rows with the same tree paths, hence equal forests
            up to the growth of the private tails; compare with `==`. Requests and tree nodes are
            in it as weak references, so keeping one keeps nothing alive: a living object has one,
            and that of a dead one equals no other. A batch with beam rows never equals another.
        kept: reads the tree, and has kept what it read for the batch before.
        rows: batch rows, `len(batch.seq_lens)`.
        beams: which rows beyond the requests alias a request's; the others are private.
        prompts: rows that SGLang prefills in the same batch, before these; 0 but in a MIXED one.
        least_lengths: int32 ``[rows]`` KV tokens that rows hold at least, without their drafts,
            where only the device knows how many; None where the host does.
    """

    signature: tuple[Any, ...]
    kept: KeptBatches
    rows: int
    beams: tuple[BeamRows, ...] = ()
    prompts: int = 0
    least_lengths: np.ndarray | None = None

    @property
    def reader_name(self) -> str:
        return self.kept.reader.name

    def read(self) -> RadixPaths:
        """Look at the tree for who has joined; on the scheduler thread, inside `run_batch`.

        A tree that cannot be read proves nothing and is counted in `FALLBACKS`.
        """
        paths = self._read_tree()
        return with_members(paths, self.rows, self.beams) if self.rows > paths.batch else paths

    def _read_tree(self) -> RadixPaths:
        """Paths of the requests' rows."""
        states = self.signature[1]
        try:
            return self.kept.read(states)
        except Exception as error:  # whatever a foreign tree raises, sharing must not be guessed
            FALLBACKS.record(f"reading the tree failed with {type(error).__name__}", error)
            return RadixPaths.private(len(states[0]))

    def moved_since(self, signature: tuple[Any, ...]) -> list[int] | None:
        """The rows whose tree handle or tree-owned tokens are others than in `signature`.

        None: these are not the same rows, or the device may have permuted them.
        """
        (rows, states, once), (rows_then, then, once_then) = self.signature, signature
        requests, handles, owned, *others = states
        requests_then, handles_then, owned_then, *others_then = then
        if (rows, requests, others, once) != (rows_then, requests_then, others_then, once_then):
            return None
        return sorted({*differing(handles, handles_then), *differing(owned, owned_then)})


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
        tuple(map(ref, reqs)),
        tuple([n if type(n := r.last_node) is int else weak(n) for r in reqs]),
        tuple([k.cache_protected_len for k in kv]),
        tuple([k.req_pool_idx for k in kv]),
        tuple([r.retraction_count for r in reqs]),
    )


def lengths_of(reqs: Sequence[Any]) -> np.ndarray:
    """KV tokens of each request that the host knows of, int32: under overlap a step too few."""
    owners = reqs if hasattr(reqs[0], "kv_committed_len") else [req.kv for req in reqs]
    return np.array([owner.kv_committed_len for owner in owners], np.int32)


def make_codec_batch(
    reqs: Sequence[Any],
    rows: int,
    kept: KeptBatches,
    row_states: ReadStates,
    beams: tuple[BeamRows, ...] = (),
    prompts: int = 0,
    epoch: int = 0,
) -> CodecBatch:
    """A `CodecBatch` for these requests, in batch order, and `rows >= len(reqs)` batch rows.

    `epoch`: batches of different ones are never equal.
    """
    # beam rows, their leader's included, may be permuted on the device between any two steps
    once = object() if rows > len(reqs) else epoch
    return CodecBatch((rows, row_states(reqs), once), kept, rows, beams, prompts)
