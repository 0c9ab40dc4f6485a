"""The shape of an attention layer: all that planner, buffers and kernels must know of it."""

from __future__ import annotations

from dataclasses import dataclass

_ELEMENT_BYTES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}


def columns_for(dim: int) -> int:
    """Columns in which kernels hold rows of `dim` elements: a power of two, at least 16."""
    return max(16, 1 << (dim - 1).bit_length())


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What layers must have in common to be served by one plan and one launch.

    A property is served once `shape_support` knows of a kernel that honours it; a layer that has
    another one is left to SGLang's backend. Sinks are none: they come with each call, as q does.

    Args:
        num_qo_heads: query heads of this rank. num_kv_heads: its KV heads.
        key_dim: elements of a query or key head. value_dim: of a value head.
        dtype: of queries and output, by torch's name. kv_dtype: of K and V in the pool.
        window: tokens before its own that a query sees, as SGLang and FlashInfer count; None for
            all of them.
        soft_cap: scores are bent into (-soft_cap, soft_cap) by tanh; None for no cap.
        query_rows: newest tokens of a request that attend in one step, each to those before it
            and to itself.
    """

    num_qo_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    dtype: str
    kv_dtype: str
    window: int | None = None
    soft_cap: float | None = None
    query_rows: int = 1

    @classmethod
    def plain(
        cls,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: str = "bfloat16",
        kv_dtype: str | None = None,
    ) -> AttentionShape:
        """Causal attention with one head dimension; `kv_dtype` is `dtype` if None."""
        return cls(num_qo_heads, num_kv_heads, head_dim, head_dim, dtype, kv_dtype or dtype)

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.num_qo_heads // self.num_kv_heads

    @property
    def request_rows(self) -> int:
        """Rows of a query tile that one request fills, for one KV head."""
        return self.query_rows * self.group

    def why_too_many_rows(self, limit: int) -> str | None:
        """Why a request does not fit query tiles of up to `limit` rows; None if it does."""
        if self.request_rows <= limit:
            return None
        return (
            f"{self.query_rows} query rows per request of a GQA group of {self.group} are "
            f"{self.request_rows} rows of a query tile, the limit is {limit}: at most "
            f"{limit // self.group} query rows of this group"
        )

    @property
    def seen_tokens(self) -> int:
        """The newest tokens that a query sees, its own included; 0 for all."""
        return 0 if self.window is None else self.window + 1

    @property
    def is_fp8(self) -> bool:
        """Whether K and V take one byte an element."""
        return _ELEMENT_BYTES[self.kv_dtype] == 1

    @property
    def dims(self) -> str:
        """The dimension of a head, or those of a key's and a value's."""
        return "/".join(map(str, dict.fromkeys((self.key_dim, self.value_dim))))

    @property
    def kv_token_bytes(self) -> int:
        """K and V of one token for one KV head."""
        return (self.key_dim + self.value_dim) * _ELEMENT_BYTES[self.kv_dtype]

    @property
    def product_columns(self) -> int:
        """Columns that are multiplied for a query row and a token."""
        return columns_for(self.key_dim) + columns_for(self.value_dim)

    @property
    def partial_bytes(self) -> int:
        """One request's fp32 partial output and LSE for one KV head."""
        return self.request_rows * (self.value_dim + 1) * 4

    def __str__(self) -> str:
        dtypes = dict.fromkeys((self.dtype, self.kv_dtype))
        heads = f"{self.num_qo_heads}/{self.num_kv_heads} heads of {self.dims}"
        window = f", window of {self.seen_tokens}" if self.window is not None else ""
        cap = f", capped at {self.soft_cap:g}" if self.soft_cap is not None else ""
        rows = f", {self.query_rows} query rows" if self.query_rows > 1 else ""
        return f"{heads}, {' over '.join(dtypes)}{window}{cap}{rows}"
