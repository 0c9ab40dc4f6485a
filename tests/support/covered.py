"""What a plan without bundles reads, checked against its forest for thousands of rows at once."""

from __future__ import annotations

import numpy as np

from sglang_codec.planning.forest import PrefixForest
from sglang_codec.planning.plan import ALIGNED_ENTRIES, Plan


def check_covered(plan: Plan, forest: PrefixForest, headroom: int) -> None:
    """Assert that each row reads each of its tokens once, in order, from where a row that shares
    them put them, and that its tail may grow by `headroom`."""
    assert plan.num_bundles == 0
    assert plan.order.tolist() == forest.order.tolist()
    kv_start, kv_len, first, queries, part, open_row, base, most = plan.tasks.T.astype(np.int64)
    assert (kv_len > 0).all()
    assert (kv_start % ALIGNED_ENTRIES == 0).all(), "a task begins where slots cannot be loaded"
    task = np.repeat(np.arange(plan.num_tasks), queries)
    nth = np.arange(len(task)) - np.repeat(np.cumsum(queries) - queries, queries)
    position = first[task] + nth
    row = forest.order[position]

    # the tasks of each row tile its tokens
    along = np.lexsort((base[task], row))
    begin, end = base[task][along], (base + kv_len)[task][along]
    is_first = np.append(True, row[along][1:] != row[along][:-1])[: len(along)]
    assert (begin == np.where(is_first, 0, np.append(0, end[:-1])[: len(begin)])).all()
    reached = np.zeros(forest.batch, np.int64)
    np.maximum.at(reached, row, (base + kv_len)[task])
    assert (reached == forest.lengths).all(), "a row is not read to its end"

    # spans lie apart, each with room for its row to grow
    by, start, tokens, entry = plan.spans.T.astype(np.int64)
    grows = (start + tokens == forest.lengths[by]) & (plan.append_base[by] == entry - start)
    room = np.where(grows, headroom, 0)
    in_order = np.argsort(entry)
    ends = (entry + tokens + room)[in_order]
    assert (np.append(entry[in_order], plan.kv_entries)[1:] >= ends).all(), "spans overlap"
    has_tail = forest.length[forest.num_shared :] > 0
    tail_rows = forest.order[has_tail]
    assert sorted(by[grows].tolist()) == sorted(tail_rows.tolist())
    assert (plan.append_base[tail_rows] >= 0).all(), "a row that the device takes for padding"

    # what a task reads is what its readers hold: the last token's run is one of both paths
    of = np.searchsorted(entry[in_order], kv_start, side="right") - 1
    span = in_order[of]
    assert (start[span] + kv_start - entry[span] == base).all(), "a task reads other tokens"
    assert (kv_start + kv_len <= entry[span] + tokens[span]).all(), "a task leaves its span"
    where = np.empty(forest.batch, np.int64)
    where[forest.order] = np.arange(forest.batch)
    last = base + kv_len - 1
    mine = _node_of(forest, position, last[task])
    theirs = _node_of(forest, where[by[span]], last)
    assert (mine == theirs[task]).all(), "a task reads a row that does not share the tokens"

    # open tasks: a row's last one, and no other row's
    is_open = open_row >= 0
    assert sorted(open_row[is_open].tolist()) == (sorted(tail_rows.tolist()) if headroom else [])
    assert (queries[is_open] == 1).all()
    assert (forest.order[first[is_open]] == open_row[is_open]).all()
    assert ((base + kv_len)[is_open] == forest.lengths[open_row[is_open]]).all()
    assert (most == kv_len + np.where(is_open, headroom, 0)).all()
    assert ((kv_start - base)[is_open] == plan.append_base[open_row[is_open]]).all()
    assert (plan.max_lengths[tail_rows] == forest.lengths[tail_rows] + headroom).all()

    # partial rows: one writer each, listed in token order
    written = np.where(part[task] < 0, -1, part[task] + nth)[along]
    assert plan.part_rows.tolist() == written.tolist()
    assert (
        plan.part_indptr.tolist()
        == np.searchsorted(row[along], np.arange(forest.batch + 1)).tolist()
    )
    assert sorted(written[written >= 0].tolist()) == list(range(plan.num_parts))
    alone = is_first & np.append(is_first[1:], True)[: len(is_first)]
    assert (alone | (written >= 0)).all(), "a row of several parts is written directly"


def _node_of(forest: PrefixForest, position: np.ndarray, token: np.ndarray) -> np.ndarray:
    """The node on each position's path in which a token lies."""
    node = forest.num_shared + position
    while (behind := forest.start[node] > token).any():
        node = np.where(behind, forest.parent[node], node)
    return node
