"""A forest and its plan for people: text here, the picture in `explain_picture`."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_codec.explain_input import InputError

_SLOT_LINES = 16  # more program slots than this are summed up
_SLOT_GROUPS = 8
_CHILDREN_SHOWN = 3
_TAILS_SHOWN = 4
_NAME_COLUMNS = 40


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


def explain_text(dump: dict[str, Any], *, width: int = 100) -> str:
    """Totals, forest and program slots of a dump as plain text.

    Args:
        dump: ``{"forest": PrefixForest.to_dict(), "plan": Plan.to_dict(), "totals": {...}}``; each
            part may be missing.
        width: columns.

    Raises:
        InputError: not such a dump.
    """
    view = View.of(dump)
    lines = [
        wrapped
        for line in _header(view)
        for wrapped in textwrap.wrap(line, width, subsequent_indent="    ")
    ]
    if view.runs:
        lines += ["", "Forest (each run of KV tokens is read once for all of its readers)"]
        lines += _forest_lines(view)
    if view.chunks:
        lines += ["", *_slot_lines(view, width)]
    return "\n".join(_fit(line, width) for line in lines)


def _fit(line: str, width: int) -> str:
    return line.rstrip() if len(line) <= width else f"{line[: width - 3]}..."


def draw(dump: dict[str, Any], path: Path | str) -> None:
    """Write the picture of a dump; the suffix of `path` chooses the format.

    Raises:
        InputError: not a dump with a forest and a plan, or a format that matplotlib lacks.
        RuntimeError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise RuntimeError("the picture needs matplotlib: pip install matplotlib") from error
    from sglang_codec.explain_picture import draw_view

    draw_view(View.of(dump), Path(path))


def summary(view: View) -> list[str]:
    """The figures of a batch, one thought per line."""
    plan, lines = view.plan, []
    if view.runs:
        unique, total = view.shared_tokens
        share = 1 - unique / total if total else 0.0
        lines.append(
            f"{_count(len(view.order), 'request')} with {total:,} KV tokens, {unique:,} of them "
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
        what = _count(tasks, "task") + (f" ({_count(bundles, 'bundle')})" if bundles else "")
        lines.append(
            f"{what} on {_count(slots, 'program slot')} per KV head: "
            f"{view.makespan:.1f} us predicted, balance {view.balance:.0%} (mean / largest load)"
        )
    return lines


def _header(view: View) -> Iterator[str]:
    totals = view.totals
    if totals:
        names = ("steps", "plans", "kv_tokens_read", "kv_tokens_stock")
        steps, plans, read, stock = (int(totals.get(name, 0)) for name in names)
        yield (
            f"Served so far: {steps:,} decode steps with {plans:,} plans; read {read:,} KV tokens "
            f"instead of {stock:,}" + (f" ({stock / read:.2f} times as many)" if read else "")
        )
        for reason, count in (totals.get("fallbacks") or {}).items():
            yield f"  {count:,} steps without sharing: {reason}"
        if view.plan:
            yield "The batch that saved the most:"
    yield from (summary(view) or ["nothing has been planned yet"] * (not totals))


def _forest_lines(view: View) -> Iterator[str]:
    roots = [run for run in view.runs if run.parent < 0]
    lines = list(_children_lines(roots, ""))
    left = min(max(len(text) for text, _ in lines), _NAME_COLUMNS)
    for text, what in lines:
        yield f"  {text:<{left}}  {what}"


def _children_lines(runs: Sequence[Run], indent: str) -> Iterator[tuple[str, str]]:
    """The first child in full, some of its siblings in one line each, the others in one for all."""
    shared = [run for run in runs if run.row < 0]
    tails = [run for run in runs if run.row >= 0 and run.length]
    empty = sum(run.row >= 0 and not run.length for run in runs)
    entries: list[tuple[str, str, Sequence[Run]]] = []
    for nth, run in enumerate(shared[:_CHILDREN_SHOWN]):
        entries.append((*_run_line(run, nth == 0), run.children if nth == 0 else ()))
    if len(shared) > _CHILDREN_SHOWN:
        entries.append((*_more_line(shared[_CHILDREN_SHOWN:]), ()))
    if len(tails) <= _TAILS_SHOWN:
        entries += [(*_run_line(run, True), ()) for run in tails]
    else:
        entries.append((*_tails_line(tails), ()))
    if empty:
        entries.append((f"{_count(empty, 'request')} without private tokens", "", ()))
    for nth, (text, what, children) in enumerate(entries):
        is_last = nth == len(entries) - 1
        yield f"{indent}{'`- ' if is_last else '|- '}{text}", what
        yield from _children_lines(children, indent + ("   " if is_last else "|  "))


def _run_line(run: Run, in_full: bool) -> tuple[str, str]:
    what = f"tokens {run.start:,}..{run.start + run.length:,}"
    if run.row < 0:
        what += f", {run.readers:,} readers"
    what += f", {_reading(run)}"
    if not in_full and run.children:
        below = [child for child in run.below() if child is not run and child.row < 0]
        tails = sum(child.row >= 0 and child.length > 0 for child in run.below())
        what += f"; below: {_count(len(below), 'run')}, {_count(tails, 'tail')}"
    return run.name, what


def _reading(run: Run) -> str:
    if run.is_absorbed and not any(chunk.in_bundle for chunk in run.chunks):
        return "absorbed: too short, each child reads it again"
    if not run.chunks:
        return "not planned"
    if all(chunk.in_bundle for chunk in run.chunks):
        return "in a bundle" if len(run.chunks) == 1 else f"in {len(run.chunks)} bundles"
    tiles = len({chunk.first for chunk in run.chunks})
    count = len(run.chunks) // tiles
    longest = max(chunk.tokens for chunk in run.chunks)
    text = "1 chunk" if count == 1 else f"{count} chunks of up to {longest:,}"
    if tiles > 1:
        text += f" x {tiles} query tiles"
    absorbed = run.start - min(chunk.start for chunk in run.chunks)
    return f"{text}, with {absorbed:,} absorbed tokens" if absorbed else text


def _more_line(runs: Sequence[Run]) -> tuple[str, str]:
    tasks = len({chunk.task for run in runs for child in run.below() for chunk in child.chunks})
    return (
        f"... {_count(len(runs), 'more run')}",
        f"of {_span([run.length for run in runs])} tokens, {_span([run.readers for run in runs])} "
        f"readers; {tasks:,} tasks with all that is below",
    )


def _tails_line(tails: Sequence[Run]) -> tuple[str, str]:
    chunks = [chunk for run in tails for chunk in run.chunks]
    bundles = len({chunk.task for chunk in chunks if chunk.in_bundle})
    alone = sum(not chunk.in_bundle for chunk in chunks)
    what = [_count(alone, "chunk")] * (alone > 0 or not bundles)
    what += [f"in {_count(bundles, 'bundle')}"] * (bundles > 0)
    return (
        f"{len(tails):,} private tails",
        f"of {_span([run.length for run in tails])} tokens, {', '.join(what)}",
    )


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' * (number != 1)}"


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _slot_lines(view: View, width: int) -> Iterator[str]:
    room = max(10, width - 42)
    if len(view.slots) <= _SLOT_LINES:
        yield "Program slots (# and = are tasks in turn, . is idle)"
        for slot, chunks in enumerate(view.slots):
            yield f"  slot {slot:<5d} {_bar(chunks, view.makespan, room)} {_load(chunks)}"
        return
    yield "Program slots, busiest first (. is idle)"
    loads = sorted(view.loads, reverse=True)
    bounds = [nth * len(loads) // _SLOT_GROUPS for nth in range(_SLOT_GROUPS + 1)]
    for begin, end in zip(bounds, bounds[1:], strict=False):
        mean = sum(loads[begin:end]) / (end - begin)
        bar = "#" * round(mean / view.makespan * room)
        yield f"  {_count(end - begin, 'slot'):<10} |{bar:.<{room}}| {mean:8.1f} us each"


def _bar(chunks: Sequence[Chunk], makespan: float, room: int) -> str:
    bar, us = "", 0.0
    nth, last = -1, None
    for chunk in chunks:
        us += chunk.us
        nth, last = nth + (chunk.task != last), chunk.task
        bar += "#="[nth % 2] * (round(us / makespan * room) - len(bar))
    return f"|{bar:.<{room}}|"


def _load(chunks: Sequence[Chunk]) -> str:
    tasks = len({chunk.task for chunk in chunks})
    return f"{sum(chunk.us for chunk in chunks):8.1f} us, {_count(tasks, 'task')}"
