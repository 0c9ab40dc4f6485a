"""Bytes that one layer has to move: KV, Q, O, and the partial results of our plan."""

from __future__ import annotations

PARTIAL_ELEMENT_BYTES = 4  # partial outputs and their LSE are fp32
KINDS = ("kv", "q", "o", "partial_write", "partial_read")


def split(
    kv: int, *, batch: int, num_qo_heads: int, head_dim: int, element_bytes: int, parts: int
) -> dict[str, int]:
    """Bytes of each kind.

    Args:
        kv: bytes of the unique KV.
        parts: partial rows of the plan; each holds an output and an LSE for every query head. Q
            counts once, as O does: the tasks of a row find it in L2.
    """
    rows = batch * num_qo_heads * head_dim * element_bytes
    partial = parts * num_qo_heads * (head_dim + 1) * PARTIAL_ELEMENT_BYTES
    return {"kv": kv, "q": rows, "o": rows, "partial_write": partial, "partial_read": partial}


def all_bytes_us(row: dict) -> float | None:
    """Microseconds that all bytes of a row take at the bandwidth that its limit was made with."""
    parts = row.get("bytes")
    return row["bandwidth_us"] * sum(parts.values()) / parts["kv"] if parts else None


def full_limit_us(row: dict) -> float | None:
    """The row's limit with Q, O and partial bytes counted beside KV."""
    us = all_bytes_us(row)
    return None if us is None else max(us, row.get("compute_us", 0.0))
