"""Cut query tiles like a tape: end to end, every slot takes as much as it has room for."""

from __future__ import annotations

import numpy as np

from sglang_codec.planning.compiled import compiled, leaf
from sglang_codec.planning.schedule import sort
from sglang_codec.planning.tables import keys_of
from sglang_codec.planning.tiles import chunk_tokens, put_chunk

_TILE = 2.0**32  # larger than the tokens of any item
_TOKEN = 2.0**16  # larger than the queries of any item


@compiled
def cut_tape(
    items: np.ndarray,
    is_ganged: np.ndarray,
    busy: np.ndarray,
    machine: np.record,
    tasks: np.ndarray,
) -> int:
    """Divide and schedule in one go: at most one cut per slot, all slots busy about equally long.

    The items lie end to end, longest first, each as long as its predicted microseconds, and every
    slot takes a piece of the tape that fills it up to the common level. A cut falls on a whole
    block of its item and costs the overhead of one more task; where that is an end of the item, the
    item stays whole.

    Args:
        items: a table of `ITEM`. is_ganged: int64 ``[I]``, items that are not on the tape.
        busy: float64 ``[slots]`` microseconds that each slot has to do besides.
        tasks: a table of `TASK`, written; as many as items and slots at least.

    Returns:
        The number of tasks.
    """
    tape, total = _along_tape(items, is_ganged)
    level, last_slot, count = common_level(busy, total), len(busy) - 1, len(tape)
    # where the slot ends: in which place of the tape, and the microseconds before that item's
    # begin and before the slot's end; the same as a cut: whole blocks into an item, or its begin
    at, before, end, cut_at, offset = 0, 0.0, 0.0, 0, 0
    done, slot = 0, -1
    for i in range(count):
        item, begin = items[tape[i].place], 0
        while True:
            while slot < last_slot and (
                slot < 0 or cut_at < i or (cut_at == i and offset <= begin)
            ):
                slot += 1
                if slot == last_slot:
                    break
                end += max(level - busy[slot], 0.0)
                while at < count - 1 and before + items[tape[at].place].us <= end:
                    before += items[tape[at].place].us
                    at += 1
                offset = _offset_of_cut(items[tape[at].place], end - before, machine)
                cut_at = at if offset >= 0 else at + 1
                offset = max(offset, 0)
            if slot == last_slot or cut_at > i:
                break
            put_chunk(tasks[done], items, tape[i].place, begin, offset - begin, slot, machine)
            done += 1
            begin = offset
        put_chunk(tasks[done], items, tape[i].place, begin, item.tokens - begin, slot, machine)
        done += 1
    return done


@compiled
def _along_tape(items: np.ndarray, is_ganged: np.ndarray) -> tuple[np.ndarray, float]:
    """The items on the tape in their order, a table of `KEY`, and their microseconds together.

    Largest tiles first, of these the longest, then by their place in the sequence: who is cut
    depends on the items, not on the order they came in.
    """
    keys, count, total = keys_of(len(items)), 0, 0.0
    for i in range(len(items)):
        if not is_ganged[i]:
            item = items[i]
            keys[count].place = i
            keys[count].key = item.start * _TOKEN + item.queries
            count += 1
            total += item.us
    keys = keys[:count]
    sort(keys)
    for k in range(count):
        item = items[keys[k].place]
        keys[k].key = -(item.tile * _TILE + item.tokens)
    sort(keys)
    return keys, total


@leaf
def _offset_of_cut(item: np.record, into: float, machine: np.record) -> int:
    """Tokens into an item at which a cut falls: 0 for its begin, -1 for its end."""
    block = float(machine.block_kv)
    offset = int(np.rint(chunk_tokens(item, machine, into) / block) * block)
    # half a block or less is not cut off; what is not cut falls to the side that has more
    if offset > 0:
        return -1 if offset >= item.tokens - block / 2 else offset
    return -1 if into > item.us / 2 else 0


@compiled
def common_level(busy: np.ndarray, us: float) -> float:
    """The level to which `us` more microseconds fill the slots."""
    lowest, total, level = keys_of(len(busy)), us, 0.0
    for s in range(len(busy)):
        lowest[s].key = busy[s]
    sort(lowest)
    for n in range(len(busy)):
        if n > 0 and level <= lowest[n].key:
            break
        total += lowest[n].key
        level = total / (n + 1)
    return level
