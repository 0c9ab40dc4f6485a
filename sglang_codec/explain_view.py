"""A dump of a forest and its plan, checked and linked up: what text and picture show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


class InputError(ValueError):
    """The input cannot be explained; the message says what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A task, one query tile over one chunk of a run; or the part of a bundle in one run."""

    task: int
    node: int
    start: int
    tokens: int
    first: int
    queries: int
    slot: int
    us: float
    in_bundle: bool


@dataclass(slots=True)
class Run:
    """A node of the forest; `row` is the batch row of a private tail, -1 of a shared run."""

    node: int
    parent: int
    start: int
    length: int
    first: int
    last: int
    row: int
    label: str
    is_absorbed: bool
    chunks: list[Chunk] = field(default_factory=list)
    children: list[Run] = field(default_factory=list)

    @property
    def readers(self) -> int:
        return self.last - self.first

    @property
    def name(self) -> str:
        name = f"request {self.row}" if self.row >= 0 else f"run {self.node}"
        return f"{name} ({self.label})" if self.label else name

    def below(self) -> Iterator[Run]:
        """The run and all runs below it, depth first."""
        stack = [self]
        while stack:
            run = stack.pop()
            yield run
            stack.extend(reversed(run.children))


@dataclass(frozen=True, slots=True)
class View:
    """A dump, checked and linked up."""

    plan: dict[str, Any]
    totals: dict[str, Any]
    runs: list[Run]  # empty if the dump has no forest
    order: list[int]
    chunks: list[Chunk]
    slots: list[list[Chunk]]  # the tasks of each program slot, longest first

    @classmethod
    def of(cls, dump: dict[str, Any]) -> View:
        """Raises InputError if the dump is not one."""
        try:
            return _view(dump)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"this is not a dump of a forest and its plan ({type(error).__name__}: {error}); "
                'one has {"forest": ..., "plan": ...}, as a server writes to $SGLANG_CODEC_DUMP'
            ) from error

    @property
    def shared_tokens(self) -> tuple[int, int]:
        """KV tokens of all runs once, and of all rows on their own."""
        unique = sum(run.length for run in self.runs)
        return unique, sum(run.length * run.readers for run in self.runs)

    @property
    def loads(self) -> list[float]:
        """Predicted busy microseconds of each slot."""
        return [sum(chunk.us for chunk in slot) for slot in self.slots]

    @property
    def makespan(self) -> float:
        return max(self.loads, default=0.0)

    @property
    def balance(self) -> float:
        """Mean load of a slot over the largest, 0 to 1."""
        room = self.makespan * len(self.slots)
        return sum(self.loads) / room if room else 1.0


def _chunks(plan: dict[str, Any], forest: dict[str, Any]) -> Iterator[Chunk]:
    lengths, order = forest.get("lengths", []), forest.get("order") or plan.get("order", [])
    columns = ("task_table", "task_node", "task_start", "task_slot", "task_us")
    rows = zip(*(plan.get(c, []) for c in columns), strict=True)
    pieces = list(
        zip(*(plan.get(f"piece_{c}", []) for c in ("table", "node", "start")), strict=True)
    )
    for nth, (task, node, start, slot, us) in enumerate(rows):
        _, tokens, first, queries, _, open_row, open_base, most = task
        if node >= 0:
            if open_row >= 0 and lengths:
                tokens = min(tokens, lengths[open_row] - open_base)
            yield Chunk(nth, node, start, tokens, first, queries, slot, float(us), False)
            continue
        for (_, length, open_row, readers), node, start in pieces[open_base : open_base + most]:
            low, high = readers & 0xFFFF, readers >> 16
            if open_row >= 0 and lengths:
                length = lengths[order[first + low]] - start
            share = float(us) * length / max(tokens, 1)
            yield Chunk(nth, node, start, length, first + low, high - low, slot, share, True)


def _view(dump: dict[str, Any]) -> View:
    plan, forest = dict(dump.get("plan") or {}), dict(dump.get("forest") or {})
    order = forest.get("order") or plan.get("order", [])
    chunks = sorted(_chunks(plan, forest), key=lambda chunk: -chunk.us)
    runs = []
    if forest:
        labels = dump.get("labels") or [""] * len(forest["parent"])
        absorbed = set(plan.get("absorbed", []))
        shared = len(forest["parent"]) - len(order)
        names = ("parent", "start", "length", "first", "last")
        rows = zip(*(forest[name] for name in names), labels, strict=True)
        for node, (parent, start, length, first, last, label) in enumerate(rows):
            row = order[node - shared] if node >= shared else -1
            runs.append(Run(node, parent, start, length, first, last, row, label, node in absorbed))
        for run in runs:
            if run.parent >= 0:
                runs[run.parent].children.append(run)
        for chunk in chunks:
            runs[chunk.node].chunks.append(chunk)

    slots: list[list[Chunk]] = [[] for _ in range(plan.get("slots", 0))]
    busy = Counter()
    for chunk in chunks:
        busy[chunk.task] += chunk.us
    for chunk in sorted(chunks, key=lambda chunk: (-busy[chunk.task], chunk.task)):
        slots[chunk.slot].append(chunk)
    return View(plan, dict(dump.get("totals") or {}), runs, list(order), chunks, slots)


def summary(view: View) -> list[str]:
    """The figures of a batch, one thought per line."""
    plan, lines = view.plan, []
    if view.runs:
        unique, total = view.shared_tokens
        share = 1 - unique / total if total else 0.0
        lines.append(
            f"{counted(len(view.order), 'request')} with {total:,} KV tokens, {unique:,} of them "
            f"unique (share ratio {share:.1%})"
        )
    if plan:
        read, stock = plan["kv_tokens_read"], plan["kv_tokens_stock"]
        lines.append(
            f"reads {read:,} KV tokens per KV head; a backend that reads every request on its own "
            f"reads {stock:,}" + (f" ({stock / read:.2f} times as many)" if read else "")
        )
        tasks, slots = len({chunk.task for chunk in view.chunks}), len(view.slots)
        bundles = plan.get("bundles", 0)
        what = counted(tasks, "task") + (f" ({counted(bundles, 'bundle')})" if bundles else "")
        lines.append(
            f"{what} on {counted(slots, 'program slot')} per KV head: "
            f"{view.makespan:.1f} us predicted, balance {view.balance:.0%} (mean / largest load)"
        )
    return lines


def counted(number: int, thing: str) -> str:
    """`1 task`, `2 tasks`."""
    return f"{number:,} {thing}{'s' * (number != 1)}"
