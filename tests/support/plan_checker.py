"""Judges a packed plan by what the device makes of it; knows nothing of how it was made.

It fills the KV index as the spans say, lets every row grow, and reads what every task reads.
Longest first is no matter here: what a task takes is the cost model's to say.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from packed_reads import (
    bundle_tokens,
    chunk_tokens,
    expand,
    has_end,
    left_behind,
    piece_tokens,
    reads,
)
from packed_view import PackedView, require
from token_rows import TokenRows

from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.packed import PackedPlan, pack
from sglang_codec.planning.plan import ALIGNED_ENTRIES, Plan, PlanCapacity, PlanLayout, PlanSpec
from sglang_codec.planning.windows import no_tail

_BEHIND_ALL = 1 << 40  # tokens: a bundle's part comes last
_PADDING, _STALE = 2, -77


def check_plan(
    plan: Plan, batch: TokenRows, spec: PlanSpec, forest: PrefixForest | None = None
) -> Counter[str]:
    """`check_packed` of a plan in buffers that just hold it, but for some rows of padding.

    Args:
        forest: what the plan was made of; None if it knows of no sharing.
    """
    sizes = (plan.num_tasks, plan.num_parts, plan.kv_entries, plan.bundle_entries)
    layout = PlanLayout.of(PlanCapacity(plan.batch + _PADDING, *sizes), spec)
    packed = np.full(layout.size, _STALE, np.int32)
    return check_packed(packed, layout, pack(forest, plan, layout, packed), batch, spec)


def check_packed(
    packed: np.ndarray, layout: PlanLayout, made: PackedPlan, batch: TokenRows, spec: PlanSpec
) -> Counter[str]:
    """Assert that a packed plan serves `batch`, now and as long as it says.

    Returns:
        How many `tasks`, `bundles`, `shared tiles` (of several rows), `gangs` (tiles of a run, cut
        at the same token), `merges` and `open tails` the plan has.
    """
    view = PackedView.of(packed, layout, made)
    rows = len(batch.lengths)
    assert len(view.order) == rows, f"planned for {len(view.order)} rows, the batch has {rows}"
    require((view.order >= 0) & (view.order < rows), "the order has a row {}", view.order)
    once = np.bincount(view.order, minlength=rows) == 1
    require(once, "row {} is not in the order once", np.arange(rows))
    _check_slots(view, spec)
    room = _room_to_grow(view, made, batch, spec)
    later = batch.grown(room)
    index = _filled_index(view, batch, later, layout.capacity, no_tail(spec.shape.seen_tokens))
    _check_bundle_room(view, later.lengths, layout.capacity)
    _check_reads(view, index, batch, later, spec)
    _check_parts(view, index, later, layout.capacity)
    _check_figures(view, made, batch, spec.shape.seen_tokens)
    begin, tiles = np.unique(view.chunks[:, 0], return_counts=True)
    is_cut = np.isin(begin, view.chunks[:, 0] + view.chunks[:, 1])
    return Counter(
        {
            "tasks": len(view.tasks),
            "bundles": len(view.bundles),
            "shared tiles": int((view.chunks[:, 3] > 1).sum()),
            "gangs": int((is_cut & (tiles > 1)).sum()),
            "merges": len(view.merges),
            "open tails": int((view.chunks[:, 5] >= 0).sum() + (view.pieces[:, 2] >= 0).sum()),
        }
    )


def _check_slots(view: PackedView, spec: PlanSpec) -> None:
    """Each task is in one slot's range, in the class that its queries fit, and begins aligned."""
    # class by class, and in each slot by slot
    begin, end = (view.bounds[:, :, side].T.ravel().astype(np.int64) for side in (0, 1))
    num_classes, slots = view.bounds.shape[1], len(view.bounds)
    slot, kind = np.tile(np.arange(slots), num_classes), np.repeat(np.arange(num_classes), slots)
    wanted = np.append(0, end[:-1])
    says = "tasks of slot {}, class {} begin at {}, those before it end at {}"
    require(begin == wanted, says, slot, kind, begin, wanted)
    require(end >= begin, "slot {} has tasks {} to {} of class {}", slot, begin, end, kind)
    assert end[-1] == len(view.tasks), f"slots run {end[-1]} of {len(view.tasks)} tasks"

    task = np.arange(len(view.tasks))
    first, queries = view.tasks[:, 2].astype(np.int64), view.tasks[:, 3].astype(np.int64)
    within = (first >= 0) & (queries >= 1) & (first + queries <= len(view.order))
    require(within, "task {} has {} queries from position {} on", task, queries, first)
    tiles = np.array([*spec.row_tiles, *([spec.bundle_rows] if spec.bundle_rows else [])])
    # what fits a smaller tile is not put into a larger one
    smaller = np.array([0, *spec.row_tiles])[: len(tiles)] // spec.shape.request_rows
    if spec.bundle_rows:
        smaller[-1] = 0
    kind = np.repeat(kind, end - begin)
    most, least = (tiles // spec.shape.request_rows)[kind], smaller[kind] + 1
    require(queries <= most, "task {} has {} queries, its tile {}", task, queries, most)
    require(queries >= least, "task {} has {} queries, fewer than {}", task, queries, least)
    begin = view.tasks[:, 0]
    require(begin % ALIGNED_ENTRIES == 0, "task {} begins misaligned, at entry {}", task, begin)


def _room_to_grow(
    view: PackedView, made: PackedPlan, batch: TokenRows, spec: PlanSpec
) -> np.ndarray:
    """int64 ``[B]``: tokens by which each row may grow, proven to be the headroom."""
    rows, row = len(batch.lengths), np.arange(len(batch.lengths))
    none = no_tail(spec.shape.seen_tokens)
    padding = view.append_base[rows:]
    require(padding == none, "append_base is {} of a row that pads the batch", padding)
    base = view.append_base[:rows].astype(np.int64)
    require(base >= none, "append_base of row {} is {}", row, base)
    # a row whose last token is its own decodes it; others may be left as they are
    some = batch.lengths > 0
    last = batch.names[(batch.begin + batch.lengths - 1)[some]]
    is_own = np.zeros(rows, bool)
    is_own[some] = np.bincount(batch.names)[last] == 1
    require(~is_own | (base > none), "row {} has no append_base and cannot grow", row)
    most = np.asarray(made.max_lengths, np.int64)
    assert most.shape == (rows,), f"max_lengths has shape {most.shape}"
    wanted = batch.lengths + np.where(base > none, spec.tail_headroom, 0)
    require(most == wanted, "row {} may grow to {} tokens, not to {}", row, most, wanted)
    return most - batch.lengths


def _filled_index(
    view: PackedView, batch: TokenRows, later: TokenRows, capacity: PlanCapacity, none: int
) -> np.ndarray:
    """int64 ``[kv_index]``: names of the tokens when all rows have grown, -1 where there is none.

    Nothing is filled twice: neither by two spans nor by a row that grows.
    """
    row, start, tokens, entry = view.spans.T.astype(np.int64)
    span, rows = np.arange(len(row)), len(batch.lengths)
    require((row >= 0) & (row < rows), "span {} is of row {}", span, row)
    within = (start >= 0) & (tokens >= 1) & (start + tokens <= batch.lengths[row])
    says = "span {} lists {} tokens from {} on, row {} has {}"
    require(within, says, span, tokens, start, row, batch.lengths[row])
    says = "span {} needs {} kv_index entries, the buffers hold {}"
    end, limit = entry + tokens, capacity.kv_index
    require((entry >= 0) & (end <= limit), says, span, end, limit)

    base = view.append_base[:rows].astype(np.int64)
    grows = np.flatnonzero(base > none)
    now, room = batch.lengths[grows], (later.lengths - batch.lengths)[grows]
    appended, new = expand(base[grows] + now, room), expand(later.begin[grows] + now, room)
    says = "a row that grows needs {} kv_index entries, the buffers hold {}"
    require(appended < limit, says, appended + 1, limit)
    filled = expand(entry, tokens)
    index = np.full(max(int(end.max(initial=0)), int(appended.max(initial=-1)) + 1), -1, np.int64)
    index[filled] = batch.names[expand(batch.begin[row] + start, tokens)]
    # the step that the plan is made for appends its token where the span has put it already
    newest, at = batch.names[batch.begin[grows] + now - 1], base[grows] + now - 1
    good = (at >= 0) & (at < len(index)) & (index[at % max(len(index), 1)] == newest)
    require(good, "row {} appends at entry {}, which is not its last token's", grows, at)
    index[appended] = later.names[new]
    times = np.bincount(np.concatenate([filled, appended]), minlength=len(index))
    require(times <= 1, "entry {} is filled {} times: spans overlap", np.arange(len(index)), times)
    return index


def _check_bundle_room(view: PackedView, lengths: np.ndarray, capacity: PlanCapacity) -> None:
    """The bundles' own index has room for each of them, however long its rows are."""
    tokens = bundle_tokens(view, piece_tokens(view, lengths))
    begin = view.bundles[:, 0].astype(np.int64)
    limit = capacity.bundle_index
    says = "a bundle needs {} bundle_index entries, the buffers hold {}"
    require((begin >= 0) & (begin + tokens <= limit), says, begin + tokens, limit)
    in_order = np.argsort(begin)
    end = (begin + tokens)[in_order][:-1]
    apart = begin[in_order][1:] >= end
    require(apart, "bundles overlap when their rows grow: at entry {} of their index", end)


def _check_reads(
    view: PackedView, index: np.ndarray, batch: TokenRows, later: TokenRows, spec: PlanSpec
) -> None:
    """Every row sees each token of its window once and nothing else, however far it has grown."""
    headroom, window = spec.tail_headroom, spec.shape.seen_tokens
    of_bundles = bundle_tokens(view, piece_tokens(view, batch.lengths))
    tokens = np.append(chunk_tokens(view, batch.lengths), of_bundles)
    said, task = view.tasks[:, 1], np.arange(len(tokens))
    require(said == tokens, "task {} says {} tokens and reads {}", task, said, tokens)

    # what is read in the end is the row's own, token by token; before, the beginning of each run is
    row, start, most = reads(view, later.lengths)
    inside = (start >= 0) & (start + most <= len(index))
    says = "row {} reads {} entries from {} on, which nothing fills"
    require(inside, says, row, most, start)
    some = most > 0
    name = index[start[some]]
    require(name >= 0, "row {} reads entry {}, which nothing fills", row[some], start[some])
    token = np.zeros(len(row), np.int64)
    token[some] = later.position[name]
    place = later.begin[row] + np.minimum(token, later.lengths[row] - 1)
    is_own = later.names[place[some]] == name
    says = "row {} reads entry {}, which holds another's token"
    require(is_own, says, row[some], start[some])
    fits = token + most <= later.lengths[row]
    require(fits, "row {} reads {} tokens from {} on, more than it has", row, most, token)
    entry = expand(start, most)
    wanted = later.names[entry + np.repeat(place - start, most)]
    if not np.array_equal(index[entry], wanted):
        reader = np.repeat(row, most)
        require(index[entry] >= 0, "row {} reads entry {}, which nothing fills", reader, entry)
        says = "row {} reads entry {}, which holds another's token"
        require(index[entry] == wanted, says, reader, entry)

    # what a query row does not see yet is masked where its row's own length says so
    ends, many = token + most, spec.shape.query_rows
    is_seen = has_end(view) | (ends <= batch.lengths[row] - (many - 1))
    says = f"row {{}} reads {{}} tokens without an end, more than the first of {many} query rows"
    require((many == 1) | is_seen, says, row, ends)

    for growth in sorted({0, min(1, headroom), headroom // 3, headroom}):
        now = np.minimum(batch.lengths + growth, later.lengths)
        _, _, tokens = reads(view, now)
        require(tokens <= most, "row {} reads fewer tokens as it grows", row)
        left = left_behind(view, now, tokens, window)
        edge = np.maximum(now - window, 0) if window else np.zeros_like(now)
        # one more reader where a run begins, one less where it ends; of the rows themselves too
        more = np.append(place + left, later.begin + now)
        less = np.append(place + tokens, later.begin + edge)
        if not np.array_equal(np.sort(more), np.sort(less)):
            reader = np.repeat(np.arange(len(now)), later.lengths)
            at = np.arange(len(reader)) - later.begin[reader]
            more, less = (np.bincount(ends, minlength=len(at) + 1) for ends in (more, less))
            is_seen = (at < now[reader]) & (at >= edge[reader])
            times = np.cumsum(more - less)[:-1] + is_seen
            says = f"token {{}} of row {{}} is read {{}} times ({growth} tokens later)"
            require(times == is_seen, says, at, reader, times)


def _check_parts(
    view: PackedView, index: np.ndarray, later: TokenRows, capacity: PlanCapacity
) -> None:
    """Each partial row has one writer and one place, in its row's list, in token order."""
    task = np.repeat(np.arange(len(view.tasks)), view.tasks[:, 3])
    query = expand(np.zeros(len(view.tasks), np.int64), view.tasks[:, 3].astype(np.int64))
    row, rows = view.order[view.tasks[task, 2] + query], len(view.order)
    part = view.tasks[task, 4].astype(np.int64)
    is_direct = part < 0
    part += query
    need = part[~is_direct] + 1
    require(need <= capacity.parts, "{} parts, the buffers hold {}", need, capacity.parts)
    writers = np.bincount(part[~is_direct])
    require(writers <= 1, "part {} has {} writers", np.arange(len(writers)), writers)
    parts_of = np.bincount(row, minlength=rows)
    alone = ~is_direct | (parts_of[row] == 1)
    says = "row {} is written directly by task {}, but has {} parts"
    require(alone, says, row, task, parts_of[row])

    merged, first, last = view.merges[:, :3].T.astype(np.int64)
    inside = (view.lists_begin <= first) & (first <= last) & (last <= view.lists_end)
    says = "the list of row {} is [{}, {}), outside of the lists"
    require(inside, says, merged, first, last)
    times = np.bincount(merged[(merged >= 0) & (merged < rows)], minlength=rows)
    wanted = np.ones(rows, np.int64)
    wanted[row[is_direct]] = 0
    says = "row {} is in the merges {} times, not {}"
    require(times == wanted, says, np.arange(rows), times, wanted)
    require(np.diff(last - first) <= 0, "row {} is merged after one of fewer parts", merged[1:])

    # in token order: by where what each task reads begins
    chunk = view.chunks[:, 0].astype(np.int64)
    begin = np.full(len(view.tasks), _BEHIND_ALL)
    has_entry = view.chunks[:, 1] > 0
    begin[: len(chunk)] = view.chunks[:, 6]
    begin[: len(chunk)][has_entry] = later.position[index[chunk[has_entry]]]
    written = ~is_direct
    along = np.lexsort((begin[task], row))
    along = along[written[along]]
    by_row = np.argsort(merged)
    listed = view.packed[expand(first[by_row], (last - first)[by_row])]
    sizes = np.bincount(row[written], minlength=rows)
    size = (last - first)[by_row]
    wanted = sizes[merged[by_row]]
    require(size == wanted, "the list of row {} has {} parts, not {}", merged[by_row], size, wanted)
    says = "the list of row {} has part {} where {} is in token order"
    require(listed == part[along], says, row[along], listed, part[along])


def _check_figures(view: PackedView, made: PackedPlan, batch: TokenRows, window: int) -> None:
    """What the host remembers of the plan."""
    # a row may be among the readers of a run that it has left, so with windows nobody else knows
    num_shared, depth = (made.num_shared, made.depth) if window else batch.runs()
    seen = np.minimum(batch.lengths, window) if window else batch.lengths
    expected = {
        "longest_span": int(view.spans[:, 2].max(initial=0)),
        "kv_tokens_read": int(view.tasks[:, 1].sum(dtype=np.int64)),
        "kv_tokens_stock": int(seen.sum()),
        "num_shared": num_shared,
        "depth": depth,
    }
    for name, value in expected.items():
        said = getattr(made, name)
        assert said == value, f"{name} is said to be {said}, but is {value}"
