"""What enters the planners, checked once: behind this border every index is one of an array."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

_INT32 = np.iinfo(np.int32)


def is_array(value: Any, dtype: np.dtype | type) -> bool:
    """Whether compiled code takes it: a contiguous, writable array of one dimension."""
    is_one = isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype == dtype
    return is_one and value.flags.carray


def int32_array(name: str, values: Any) -> np.ndarray:
    """`values` as an int32 array that compiled code takes.

    Raises:
        ValueError: another shape, no integers, or integers beyond 32 bits.
    """
    array = np.asarray(values)
    if is_array(array, np.int32):
        return array
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be a one-dimensional integer array, got shape {array.shape} and dtype "
            f"{array.dtype}"
        )
    if array.dtype != np.int32 and len(array):
        low, high = int(array.min()), int(array.max())
        if low < _INT32.min or high > _INT32.max:
            raise ValueError(f"{name} must fit 32 bits, got {low}..{high}")
    return np.array(array, np.int32)


def path_arrays(
    parent: Any, end: Any, leaf: Any, lengths: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The arrays of `RadixPaths` and the rows' lengths, all int32.

    Whether they are a tree is checked where it costs least, in compiled code (`entries`).

    Raises:
        ValueError: arrays that are no integers, or do not match.
    """
    parent, end = int32_array("RadixPaths.parent", parent), int32_array("RadixPaths.end", end)
    leaf, lengths = int32_array("RadixPaths.leaf", leaf), int32_array("lengths", lengths)
    _same_shape("RadixPaths.end", end, "RadixPaths.parent", parent)
    if len(leaf) != len(lengths):
        raise ValueError(
            f"lengths has shape {lengths.shape}, but the paths describe {len(leaf)} rows; pass the "
            "lengths of these rows, without those that pad the batch"
        )
    return parent, end, leaf, lengths


def refuse_paths(
    parent: np.ndarray, end: np.ndarray, leaf: np.ndarray, lengths: np.ndarray
) -> NoReturn:
    """Raise ValueError, naming the first place where `path_arrays` are no tree and rows below."""
    node = np.arange(len(parent))
    _all("RadixPaths.parent", parent, (parent >= -1) & (parent < node), "lie in [-1, own index)")
    above = np.append(end, np.int32(0))[parent]
    _all("RadixPaths.end", end, end > above, "be larger than its parent's end")
    within = (leaf >= -1) & (leaf < len(parent))
    _all("RadixPaths.leaf", leaf, within, f"lie in [-1, {len(parent)})")
    _all("lengths", lengths, lengths >= 0, "be 0 or more")
    raise ValueError("RadixPaths: the arrays are no tree")


def checked_forest(
    order: Any,
    lengths: Any,
    parent: Any,
    start: Any,
    length: Any,
    first: Any,
    last: Any,
    window: int = 0,
) -> tuple[np.ndarray, ...]:
    """The arrays of a `PrefixForest`, all int32, in the order of the arguments.

    Args:
        window: newest tokens that a row sees; 0 for all.

    Raises:
        ValueError: they break what `PrefixForest` promises; names the first place.
    """
    order, lengths = int32_array("order", order), int32_array("lengths", lengths)
    parent, start, length, first, last = (
        int32_array(name, array)
        for name, array in (
            ("parent", parent),
            ("start", start),
            ("length", length),
            ("first", first),
            ("last", last),
        )
    )
    _same_shape("lengths", lengths, "order", order)
    for name, array in (("start", start), ("length", length), ("first", first), ("last", last)):
        _same_shape(name, array, "parent", parent)
    batch, nodes = len(order), len(parent)
    shared = nodes - batch
    if shared < 0:
        raise ValueError(f"a forest of {batch} rows has {batch} tails, but only {nodes} nodes")
    _all("order", order, (order >= 0) & (order < batch), f"lie in [0, {batch})")
    _all("order", order, np.bincount(order, minlength=batch)[order] == 1, "be there once")
    _all("lengths", lengths, lengths >= 0, "be 0 or more")

    node, position = np.arange(nodes), np.arange(batch)
    limit = np.minimum(node, shared)
    _all("parent", parent, (parent >= -1) & (parent < limit), "be -1 or a shared run before it")
    _all("length", length[:shared], length[:shared] >= 1, "be 1 or more of a shared run")
    _all("length", length, length >= 0, "be 0 or more")
    end = start.astype(np.int64) + length
    is_free = (parent < 0) & (window > 0)
    _all("start", start, is_free | (start == np.append(end, 0)[parent]), "be where its parent ends")
    _all("length", length[shared:], end[shared:] == lengths[order], "end a tail with its row")

    low, high = np.append(first, 0)[parent], np.append(last, batch)[parent]
    _all("first", first, (first >= low) & (first < last), "begin within its parent's readers")
    _all("last", last, last <= high, "end within its parent's readers")
    own = (first[shared:] == position) & (last[shared:] == position + 1)
    _all("first", first[shared:], own, "be the tail's own position")
    below = np.flatnonzero(parent >= 0)
    readers = last - first
    edge = start.copy()
    for root in np.flatnonzero(is_free).tolist():
        edge[root] = max(int(lengths[order[first[root] : last[root]]].min()) - window, 0)
    _all("start", start, start == edge, "be the first token that a reader of a root sees")
    covered = np.bincount(parent[below], readers[below], minlength=shared)
    _all("last", last[:shared], covered == readers[:shared], "have the readers of its children")
    return order, lengths, parent, start, length, first, last


def check_output(out: np.ndarray, size: int) -> None:
    """Raise ValueError unless `out` can take a packed plan of `size` int32 elements."""
    if not (is_array(out, np.int32) and len(out) >= size):
        got = f"{getattr(out, 'dtype', type(out))} {list(getattr(out, 'shape', ()))}"
        raise ValueError(
            f"a packed plan needs a contiguous, writable int32 [{size}] or more, got {got}"
        )


def _same_shape(name: str, array: np.ndarray, other: str, model: np.ndarray) -> None:
    if array.shape != model.shape:
        raise ValueError(f"{name} has shape {array.shape}, but {other} {model.shape}")


def _all(name: str, array: np.ndarray, good: np.ndarray, must: str) -> None:
    if not good.all():
        at = int(np.argmin(good))
        raise ValueError(f"{name}[{at}] = {array[at]} must {must}")
