"""Bytes that one layer has to move: KV, Q, O, and the partial results of our plan."""

from __future__ import annotations

PARTIAL_ELEMENT_BYTES = 4  # partial outputs and their LSE are fp32
KINDS = ("kv", "q", "o", "partial_write", "partial_read")


def split(
    kv: int,
    *,
    batch: int,
    num_qo_heads: int,
    dims: tuple[int, int],
    element_bytes: int,
    parts: int,
) -> dict[str, int]:
    """Bytes of each kind.

    Args:
        kv: bytes of the unique KV. dims: of a key and of a value head.
        batch: query rows of all requests.
        parts: partial rows, one for each query row; each holds an output and an LSE for every query
            head. Q counts once, as O does: the tasks of a row find it in L2.
    """
    q, o = (batch * num_qo_heads * dim * element_bytes for dim in dims)
    partial = parts * num_qo_heads * (dims[1] + 1) * PARTIAL_ELEMENT_BYTES
    return {"kv": kv, "q": q, "o": o, "partial_write": partial, "partial_read": partial}


def all_bytes_us(row: dict) -> float | None:
    """Microseconds that all bytes of a row take at the bandwidth that its limit was made with."""
    parts = row.get("bytes")
    return row["bandwidth_us"] * sum(parts.values()) / parts["kv"] if parts else None


def full_limit_us(row: dict) -> float | None:
    """The row's limit with Q, O and partial bytes counted beside KV."""
    us = all_bytes_us(row)
    return None if us is None else max(us, row.get("compute_us", 0.0))
