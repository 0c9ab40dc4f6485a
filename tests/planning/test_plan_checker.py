"""The checker of packed plans finds every fault that a planner could make, and names it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from packed_view import PackedView
from plan_checker import check_packed
from plan_specs import SPEC, cost_model
from token_rows import TokenRows

from sglang_codec.planning.capacity import capacity_for
from sglang_codec.planning.packed import PackedPlan
from sglang_codec.planning.paths import RadixPaths
from sglang_codec.planning.plan import PlanLayout, PlanSpec
from sglang_codec.planning.planner import Planner

HEADROOM = 16


@dataclass
class Planned:
    """A packed plan and what it was made for; a fault changes any of it."""

    spec: PlanSpec
    batch: TokenRows
    layout: PlanLayout
    packed: np.ndarray
    made: PackedPlan

    @property
    def view(self) -> PackedView:
        return PackedView.of(self.packed, self.layout, self.made)

    def check(self) -> dict[str, int]:
        return check_packed(self.packed, self.layout, self.made, self.batch, self.spec)

    def say(self, **figures: object) -> None:
        """Let the planner say something else of its plan."""
        self.made = self.made._replace(**figures)

    def hold(self, **sizes: int) -> None:
        """Let the buffers be of other sizes; no section begins elsewhere for that."""
        self.layout = dataclasses.replace(
            self.layout, capacity=dataclasses.replace(self.layout.capacity, **sizes)
        )


def planned() -> Planned:
    """A prompt that many rows share and continue a little, and three long rows of their own."""
    spec = dataclasses.replace(
        SPEC, row_tiles=(16, 64, 128), num_slots=5, tail_headroom=HEADROOM, bundle_rows=64
    )
    paths = RadixPaths(
        np.array([-1, 0, 0], np.int32),
        np.array([3000, 3400, 3500], np.int32),
        np.array([1, 2, 0] * 20 + [-1] * 3 + [0], np.int32),
    )
    own = np.random.default_rng(1).integers(5, 40, 60)
    lengths = np.append(np.array([3400, 3500, 3000] * 20) + own, [4000, 900, 60, 5000])
    batch = TokenRows.of_paths(paths, lengths.astype(np.int32), 1)
    unique = len(batch.position)
    capacity = capacity_for(spec, rows=len(lengths) + 2, pool_slots=unique)
    layout = PlanLayout.of(capacity, spec)
    packed = np.full(layout.size, -77, np.int32)
    planner = Planner(spec, cost_model(spec), capacity)
    made = planner.pack_paths(paths, lengths.astype(np.int32), layout, packed)
    return Planned(spec, batch, layout, packed, made)


FAULTS: dict[str, tuple[str, Callable[[Planned], None]]] = {}


def fault(message: str) -> Callable[[Callable[[Planned], None]], Callable[[Planned], None]]:
    """A function that makes a good plan a bad one, and what the checker then says."""

    def add(breaks: Callable[[Planned], None]) -> Callable[[Planned], None]:
        FAULTS[breaks.__name__] = message, breaks
        return breaks

    return add


def closed(plan: Planned) -> np.ndarray:
    """Chunks that are continued by another one, as a view of one record."""
    chunks = plan.view.chunks
    follows = np.isin(chunks[:, 0] + chunks[:, 1], chunks[:, 0])
    return chunks[np.flatnonzero((chunks[:, 5] < 0) & follows)[0]]


def open_chunk(plan: Planned) -> np.ndarray:
    return plan.view.chunks[np.flatnonzero(plan.view.chunks[:, 5] >= 0)[0]]


def open_piece(plan: Planned) -> np.ndarray:
    return plan.view.pieces[np.flatnonzero(plan.view.pieces[:, 2] >= 0)[0]]


def shared_span(plan: Planned) -> np.ndarray:
    row, start, tokens, _ = plan.view.spans.T
    return plan.view.spans[np.flatnonzero(start + tokens < plan.batch.lengths[row])[0]]


def used_slot(plan: Planned) -> np.ndarray:
    """Bounds of a slot and class that has tasks."""
    bounds = plan.view.bounds
    return bounds[tuple(np.argwhere(bounds[:, :, 1] > bounds[:, :, 0])[0])]


@fault("token .* of row .* is read 0 times")
def a_token_is_skipped_at_a_chunk_border(plan: Planned) -> None:
    closed(plan)[1] -= 1


@fault("token .* of row .* is read 2 times")
def a_token_is_read_twice(plan: Planned) -> None:
    closed(plan)[1] += 1


@fault("is read 0 times")
def a_query_is_left_out_of_a_tile(plan: Planned) -> None:
    chunks = plan.view.chunks
    chunks[np.argmax(chunks[:, 3]), 3] -= 1


@fault("which holds another's token")
def a_span_is_gathered_from_another_row(plan: Planned) -> None:
    shared_span(plan)[0] = 60


@fault("entry .*which nothing fills")
def a_span_is_not_gathered_to_its_end(plan: Planned) -> None:
    shared_span(plan)[2] -= 1


@fault("part .* has 2 writers")
def a_part_is_owned_twice(plan: Planned) -> None:
    tasks = plan.view.tasks
    writers = np.flatnonzero(tasks[:, 4] >= 0)
    tasks[writers[0], 4] = tasks[writers[1], 4]


@fault("the list of row .* has .* parts, not")
def a_part_is_dropped_from_its_list(plan: Planned) -> None:
    merges = plan.view.merges
    merges[np.flatnonzero(merges[:, 2] > merges[:, 1])[-1], 2] -= 1


@fault("is in token order")
def the_parts_of_a_row_are_out_of_order(plan: Planned) -> None:
    first = plan.view.merges[0, 1]
    plan.packed[first : first + 2] = plan.packed[first : first + 2][::-1].copy()


@fault("is in token order")
def a_row_merges_the_part_of_another(plan: Planned) -> None:
    first, second = plan.view.merges[:2, 1]
    plan.packed[first] = plan.packed[second]


@fault("row .* is written directly by task .*, but has .* parts")
def a_row_of_many_parts_is_written_directly(plan: Planned) -> None:
    tasks = plan.view.tasks
    tasks[np.flatnonzero(tasks[:, 4] >= 0)[0], 4] = -1


@fault("row .* is in the merges 0 times, not 1")
def a_row_is_missing_in_the_merges(plan: Planned) -> None:
    plan.packed[plan.layout.merges] -= 1


@fault("row .* is in the merges 2 times, not 1")
def a_row_is_merged_twice(plan: Planned) -> None:
    plan.packed[plan.layout.merges] += 1
    plan.view.merges[-1] = plan.view.merges[-2]


@fault("row .* is merged after one of fewer parts")
def the_longest_merge_comes_last(plan: Planned) -> None:
    merges = plan.view.merges
    merges[[0, -1]] = merges[[-1, 0]]


@fault("begins misaligned")
def a_run_begins_where_slots_cannot_be_loaded(plan: Planned) -> None:
    closed(plan)[0] += 1


@fault("is read 0 times .1 tokens later")
def an_open_tail_is_closed(plan: Planned) -> None:
    open_chunk(plan)[5] = -1


@fault(f"is read 0 times .{HEADROOM} tokens later")
def an_open_tail_has_one_token_less_than_its_headroom(plan: Planned) -> None:
    open_chunk(plan)[7] -= 1


@fault("open task .* is not that row's alone")
def an_open_tail_follows_another_row(plan: Planned) -> None:
    open_chunk(plan)[5] += 1


@fault(f"is read 0 times .{HEADROOM} tokens later")
def a_tail_in_a_bundle_has_one_token_less_than_its_headroom(plan: Planned) -> None:
    open_piece(plan)[1] -= 1


@fault("entry .* is filled 2 times: spans overlap")
def tails_grow_into_the_next_span(plan: Planned) -> None:
    """Room for fewer tokens than every task and row is told of."""
    view = plan.view
    view.chunks[view.chunks[:, 5] >= 0, 7] += 8
    view.pieces[view.pieces[:, 2] >= 0, 1] += 8
    plan.spec = dataclasses.replace(plan.spec, tail_headroom=HEADROOM + 8)
    plan.say(max_lengths=plan.made.max_lengths + 8)


@fault("which is not its last token's")
def a_row_appends_one_entry_too_late(plan: Planned) -> None:
    plan.view.append_base[7] += 1


@fault("row 7 has no append_base and cannot grow")
def a_row_is_taken_for_padding(plan: Planned) -> None:
    plan.view.append_base[7] = -1


@fault("append_base is 0 of a row that pads the batch")
def padding_is_taken_for_a_row(plan: Planned) -> None:
    plan.view.append_base[-1] = 0


@fault("which holds another's token")
def the_readers_of_a_bundle_are_shifted_by_one(plan: Planned) -> None:
    open_piece(plan)[3] += 1 + (1 << 16)


@fault("is read by its queries .*, of")
def a_bundle_has_a_reader_too_many(plan: Planned) -> None:
    view = plan.view
    last = view.piece_begin[0] + view.bundles[0, 7] - 1
    view.pieces[last, 3] += 1 << 16


@fault("is read 2 times")
def a_piece_is_seen_by_another_row_of_its_bundle_too(plan: Planned) -> None:
    """A shared run of the bundle is listed once more in place of a tail."""
    view = plan.view
    chunk = view.chunks[np.argmax(view.chunks[:, 3])]
    piece = open_piece(plan)
    piece[:3] = chunk[0], min(chunk[1], 4), -1
    plan.view.bundles[:, 1] = [
        view.pieces[a : a + n, 1].sum() - HEADROOM * (view.pieces[a : a + n, 2] >= 0).sum()
        for a, n in zip(view.piece_begin, view.bundles[:, 7], strict=True)
    ]


@fault("bundles overlap when their rows grow")
def two_bundles_overlap(plan: Planned) -> None:
    bundles = plan.view.bundles
    bundles[np.argmax(bundles[:, 0]), 0] -= 4


@fault("a bundle of 129 pieces, at most 128")
def a_bundle_has_too_many_pieces(plan: Planned) -> None:
    plan.view.bundles[0, 7] = 129


@fault("says .* tokens and reads")
def a_bundle_says_another_length(plan: Planned) -> None:
    plan.view.bundles[0, 1] += 1


@fault("tasks of slot .* begin at .*, those before it end at")
def a_task_is_in_no_slot(plan: Planned) -> None:
    used_slot(plan)[1] -= 1


@fault("tasks of slot .* begin at .*, those before it end at")
def a_task_is_in_two_slots(plan: Planned) -> None:
    plan.view.bounds[-1, 0, 0] -= 1


@fault("queries, its tile")
def a_tile_is_too_small_for_its_queries(plan: Planned) -> None:
    plan.spec = dataclasses.replace(plan.spec, row_tiles=(16, 32, 64))


@fault("row .* is not in the order once")
def a_row_has_two_positions(plan: Planned) -> None:
    plan.view.order[0] = plan.view.order[1]


@fault("tasks, the buffers hold")
def there_are_too_many_tasks(plan: Planned) -> None:
    plan.hold(tasks=len(plan.view.tasks) - 1)


@fault("parts, the buffers hold")
def there_are_too_many_parts(plan: Planned) -> None:
    tasks = plan.view.tasks
    plan.hold(parts=int((tasks[:, 4] + tasks[:, 3])[tasks[:, 4] >= 0].max()) - 1)


@fault("kv_index entries, the buffers hold")
def the_last_tail_grows_out_of_the_index(plan: Planned) -> None:
    """The spans fit, and all but the last token that it may grow by."""
    grown = plan.view.append_base[: len(plan.batch.lengths)] + plan.made.max_lengths
    plan.hold(kv_index=int(grown.max()) - 1)


@fault("bundle_index entries, the buffers hold")
def the_bundles_grow_out_of_their_index(plan: Planned) -> None:
    bundles = plan.view.bundles
    plan.hold(bundle_index=int((bundles[:, 0] + bundles[:, 1]).max()))


@fault("row .*which nothing fills|is not its last token's")
def a_span_is_not_counted(plan: Planned) -> None:
    plan.say(num_spans=plan.made.num_spans - 1)


@fault("elements in use, the layout has")
def the_plan_is_longer_than_its_layout(plan: Planned) -> None:
    plan.say(used=plan.layout.size + 1)


@fault("row 0 may grow to")
def a_row_is_promised_more_than_its_headroom(plan: Planned) -> None:
    plan.say(max_lengths=plan.made.max_lengths + 1)


def test_the_plan_to_be_broken_is_good_and_has_everything() -> None:
    found = planned().check()
    assert min(found[what] for what in ("bundles", "shared tiles", "merges")) > 1, found
    assert found["open tails"] == len(planned().batch.lengths)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_named(name: str) -> None:
    message, breaks = FAULTS[name]
    plan = planned()
    breaks(plan)
    with pytest.raises(AssertionError, match=message):
        plan.check()


@pytest.mark.parametrize(
    "figure",
    ["longest_span", "kv_tokens_read", "kv_tokens_stock", "num_shared", "depth"],
)
def test_what_the_host_remembers_is_checked(figure: str) -> None:
    plan = planned()
    plan.say(**{figure: getattr(plan.made, figure) - 1})
    with pytest.raises(AssertionError, match=f"{figure} is said to be"):
        plan.check()


def test_rows_share_the_nodes_that_end_before_their_private_tokens() -> None:
    paths = RadixPaths(*(np.array(a, np.int32) for a in ([-1, 0, 0], [2, 4, 3], [1, 1, 2, -1])))
    rows = TokenRows.of_paths(paths, np.array([5, 4, 4, 1]), private_tokens=1)
    first, second, third, fourth = np.split(rows.names, np.cumsum(rows.lengths)[:-1])
    assert first[:2].tolist() == second[:2].tolist() == third[:2].tolist()
    # the second row ends where its leaf does: what lies between is not proven for it
    assert len({*first[2:], *second[2:], *third[2:], *fourth}) == 3 + 2 + 2 + 1
    assert rows.runs() == (1, 2)
    grown = rows.grown(np.array([0, 2, 0, 1]))
    assert grown.lengths.tolist() == [5, 6, 4, 2]
    assert len(np.unique(grown.names)) == len(np.unique(rows.names)) + 3
    assert grown.position[grown.names].tolist() == [*range(5), *range(6), *range(4), *range(2)]


def test_equal_slots_are_one_token() -> None:
    rows = TokenRows.of_slots([np.array([7, 3, 9]), np.array([7, 3]), np.array([], int)])
    assert rows.names[:2].tolist() == rows.names[3:].tolist()
    assert rows.lengths.tolist() == [3, 2, 0]
    assert rows.runs() == (1, 2)
