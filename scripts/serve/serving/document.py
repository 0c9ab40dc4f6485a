"""The benchmark's JSON document: written after every row, continued by a later command.

    {gpu, versions, commit, commands, model, server_flags, variants, bandwidth_TBps, seed, rows}

A row is one workload on one backend with one variant of the server's flags, and says on which GPU
it ran and with how many cores. `tpot_ms`, `itl_ms`, `ttft_ms`, `tokens_per_s` and `goodput` are
what a client sees; `outputs` has a digest of each request's tokens. A row of several `runs` has
their medians, and the outputs and counters of all; `busy` is what part of a core each process
took while tokens streamed. What follows from several rows is computed when
the document is written: `bound_ms` and its terms in `bound`, and `same_outputs`, how many requests
have the tokens of the first stock backend. A row that could not be measured has `why` in place of
the figures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

from library.results import plain, write
from library.servers.backends import uses_codec

from serving.bound import bound_of

# what has to be equal for rows of two commands to stand in one file
HEAD = ("gpu", "versions", "commit", "model", "server_flags", "seed")
# what the requests of a row follow from
REQUESTS = ("workload", "variant", "tree", "steps", "arrivals", "request_rate", "repeats")
REQUESTS += ("shared_tokens", "private_tokens")


class CannotContinue(ValueError):
    """The file has rows of another measurement; the message says which and what to do."""


def digest(content: str | Sequence[int]) -> str:
    """A short fingerprint of a text or of token ids."""
    text = content if isinstance(content, str) else ",".join(map(str, content))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass
class Document:
    """The head, and the rows so far."""

    gpu: str
    versions: dict[str, str]
    commit: str
    command: InitVar[str]
    model: str
    server_flags: list[str]
    variants: dict[str, list[str]]
    seed: int
    bandwidth_TBps: float | None
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self, command: str) -> None:
        self.commands = [command]

    def add(self, row: dict[str, Any]) -> None:
        """Put a row in the place of an earlier one of the same workload, backend and variant."""
        places = {_key(other): place for place, other in enumerate(self.rows)}
        place = places.get(_key(row), len(self.rows))
        self.rows[place : place + 1] = [row]

    def has(self, row: dict[str, Any]) -> bool:
        """Whether such a row was measured already, with the same settings."""
        return any(
            _key(other) == _key(row)
            and "why" not in other
            and all(other.get(name) == plain(value) for name, value in row.items())
            for other in self.rows
        )

    def as_json(self) -> dict[str, Any]:
        rows = [with_bound(row, self.rows, self.bandwidth_TBps) for row in self.rows]
        rows = [row | same_outputs(row, rows) for row in rows]
        return plain(vars(self) | {"rows": rows})

    def write(self, path: Path) -> None:
        """Write the file so that a killed run leaves the last complete one."""
        write(self.as_json(), path)

    def continue_from(self, path: Path) -> None:
        """Take over the rows of a file, the bandwidth that they were compared with, and commands.

        Raises:
            CannotContinue: if it is no such file, or of another machine, commit or configuration.
        """
        try:
            earlier = json.loads(path.read_text())
            heads = {name: earlier[name] for name in HEAD}
            self.rows, commands = list(earlier["rows"]), list(earlier["commands"])
            variants = dict(earlier["variants"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise CannotContinue(f"{path} is no result of this program: {error!r}") from error
        mine = plain(vars(self))
        # a variant may be new, but its name stands for the same flags in all rows
        heads |= {f"variant {name}": flags for name, flags in variants.items()}
        mine |= {f"variant {name}": flags for name, flags in (variants | self.variants).items()}
        if other := [name for name, there in heads.items() if there != mine[name]]:
            lines = [f"  {name}: {heads[name]} there, {mine[name]} here" for name in other]
            raise CannotContinue(
                "\n".join([f"{path} is of another measurement; name another file:", *lines])
            )
        self.variants = variants | self.variants
        self.commands = commands + [c for c in self.commands if c not in commands]
        self.bandwidth_TBps = earlier["bandwidth_TBps"] or self.bandwidth_TBps


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["workload"], row["backend"], row["variant"]


def with_bound(
    row: dict[str, Any], rows: list[dict[str, Any]], bandwidth: float | None
) -> dict[str, Any]:
    """The row with its bound, if the rows it needs are there."""
    terms = bound_of(row, rows, bandwidth) if row.get("batch") else None
    return row | {"bound_ms": terms and terms["base_ms"] + terms["kv_ms"], "bound": terms}


def same_outputs(row: dict[str, Any], rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """How many requests have the tokens of the first stock backend that served the same ones."""
    alike = [r for r in rows if all(r.get(key) == row.get(key) for key in REQUESTS)]
    stock = [r for r in alike if r.get("outputs") and not uses_codec(r["backend"])]
    if not stock or not row.get("outputs") or stock[0]["backend"] == row["backend"]:
        return {"same_outputs": None}
    pairs = zip(stock[0]["outputs"], row["outputs"], strict=True)
    identical = sum(mine == other for mine, other in pairs)
    compared = {"reference": stock[0]["backend"], "identical": identical}
    return {"same_outputs": compared | {"compared": len(row["outputs"])}}
