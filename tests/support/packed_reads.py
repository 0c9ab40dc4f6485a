"""What the tasks of a packed plan read when its rows have grown, as `kernels/lengths.py` says."""

from __future__ import annotations

import numpy as np
from packed_view import PackedView, require


def chunk_tokens(view: PackedView, now: np.ndarray) -> np.ndarray:
    """Tokens of each chunk when the rows have `now` tokens, as `kernels/lengths.py` says."""
    _, tokens, first, queries, _, open_row, base, most = view.chunks.T.astype(np.int64)
    is_open = open_row >= 0
    chunk = np.arange(len(tokens))
    own = (queries == 1) & (view.order[first] == open_row)
    require(own | ~is_open, "open task {} of row {} is not that row's alone", chunk, open_row)
    require(is_open | (tokens >= 1), "closed task {} has {} tokens", chunk, tokens)
    length = now[np.where(is_open, open_row, 0)] if len(now) else tokens
    return np.where(is_open, np.clip(length - base, 0, np.maximum(most, 0)), tokens)


def piece_tokens(view: PackedView, now: np.ndarray) -> np.ndarray:
    """Tokens of each piece, in the order of the bundles."""
    start, most, open_row, _ = view.pieces[_pieces(view)].astype(np.int64).T
    is_open = open_row >= 0
    piece, rows = np.arange(len(start)), len(now)
    require(open_row < rows, "piece {} is of row {}, the batch has {}", piece, open_row, rows)
    require(most >= 1, "piece {} has room for {} tokens", piece, most)
    row = np.where(is_open, open_row, 0)
    length = (view.append_base[row] + now[row]) if rows else most
    return np.where(is_open, np.clip(length - start, 0, most), most)


def bundle_tokens(view: PackedView, tokens: np.ndarray) -> np.ndarray:
    """Tokens of each bundle, from those of the pieces."""
    bundle = np.repeat(np.arange(len(view.bundles)), view.bundles[:, 7])
    return np.bincount(bundle, tokens, len(view.bundles)).astype(np.int64)


def reads(view: PackedView, now: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``row``, ``first entry`` and ``tokens`` of each run for a row of `now` tokens.

    What its window has left is among them, see `left_behind`.
    """
    queries = view.chunks[:, 3].astype(np.int64)
    chunk = np.repeat(np.arange(len(view.chunks)), queries)
    position = expand(view.chunks[:, 2].astype(np.int64), queries)

    bundle = np.repeat(np.arange(len(view.bundles)), view.bundles[:, 7])
    start, _, _, readers = view.pieces[_pieces(view)].astype(np.int64).T
    low, high = readers & 0xFFFF, readers >> 16
    queries = view.bundles[bundle, 3]
    says = "a piece of bundle {} is read by its queries {} to {}, of {}"
    require((low < high) & (high <= queries), says, bundle, low, high, queries)
    piece = np.repeat(np.arange(len(start)), high - low)
    inside = expand(view.bundles[bundle, 2] + low, high - low)
    return (
        view.order[np.concatenate([position, inside])],
        np.concatenate([view.chunks[chunk, 0].astype(np.int64), start[piece]]),
        np.concatenate([chunk_tokens(view, now)[chunk], piece_tokens(view, now)[piece]]),
    )


def has_end(view: PackedView) -> np.ndarray:
    """bool: which of `reads` end where their row does."""
    piece = _pieces(view)
    low, high = view.pieces[piece, 3] & 0xFFFF, view.pieces[piece, 3] >> 16
    of_chunks = np.repeat(view.chunks[:, 5] >= 0, view.chunks[:, 3])
    return np.concatenate([of_chunks, np.repeat(view.pieces[piece, 2] >= 0, high - low)])


def left_behind(view: PackedView, now: np.ndarray, tokens: np.ndarray, window: int) -> np.ndarray:
    """Of each of `reads` the first tokens that a row of `now` tokens does not see, as PAC masks.

    It masks chunks by where the plan says that they begin, and bundles' tails by their row's own
    entries; what rows share in a bundle it does not mask.
    """
    if not window:
        return np.zeros_like(tokens)
    queries = view.chunks[:, 3].astype(np.int64)
    row, start, _ = reads(view, now)
    token = np.full(len(row), 1 << 40)  # behind every edge
    token[: int(queries.sum())] = np.repeat(view.chunks[:, 6].astype(np.int64), queries)
    piece = _pieces(view)
    low, high = view.pieces[piece, 3] & 0xFFFF, view.pieces[piece, 3] >> 16
    open_row = np.repeat(view.pieces[piece, 2], high - low)
    of_pieces = token[int(queries.sum()) :]
    of_tails = start[int(queries.sum()) :] - view.append_base[open_row].astype(np.int64)
    of_pieces[:] = np.where(open_row >= 0, of_tails, of_pieces)
    return np.clip(np.asarray(now)[row] - window - token, 0, tokens)


def _pieces(view: PackedView) -> np.ndarray:
    """Numbers of the pieces, bundle after bundle."""
    return expand(view.piece_begin, view.bundles[:, 7].astype(np.int64))


def expand(begin: np.ndarray, count: np.ndarray) -> np.ndarray:
    """``begin[i], begin[i] + 1, ...``, ``count[i]`` numbers of each, back to back."""
    return np.repeat(begin - (np.cumsum(count) - count), count) + np.arange(int(count.sum()))
