"""A forest and its plan for people: text here, the picture in `explain_picture`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sglang_codec.explain_view import Chunk, Run, View, counted, summary

_SLOT_LINES = 16  # more program slots than this are summed up
_SLOT_GROUPS = 8
_CHILDREN_SHOWN = 3
_TAILS_SHOWN = 4
_NAME_COLUMNS = 40


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
        entries.append((f"{counted(empty, 'request')} without private tokens", "", ()))
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
        what += f"; below: {counted(len(below), 'run')}, {counted(tails, 'tail')}"
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
        f"... {counted(len(runs), 'more run')}",
        f"of {_span([run.length for run in runs])} tokens, {_span([run.readers for run in runs])} "
        f"readers; {tasks:,} tasks with all that is below",
    )


def _tails_line(tails: Sequence[Run]) -> tuple[str, str]:
    chunks = [chunk for run in tails for chunk in run.chunks]
    bundles = len({chunk.task for chunk in chunks if chunk.in_bundle})
    alone = sum(not chunk.in_bundle for chunk in chunks)
    what = [counted(alone, "chunk")] * (alone > 0 or not bundles)
    what += [f"in {counted(bundles, 'bundle')}"] * (bundles > 0)
    return (
        f"{len(tails):,} private tails",
        f"of {_span([run.length for run in tails])} tokens, {', '.join(what)}",
    )


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
        yield f"  {counted(end - begin, 'slot'):<10} |{bar:.<{room}}| {mean:8.1f} us each"


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
    return f"{sum(chunk.us for chunk in chunks):8.1f} us, {counted(tasks, 'task')}"
