"""One captured CUDA graph serves every later plan, and nothing waits for the host."""

from __future__ import annotations

import pytest
import torch
from planned import plan_batch

from sglang_codec import PrefixForest, PrefixSharedDecodeWrapper
from sglang_codec.attention import prefix_shared_attention, update_lengths
from sglang_codec.attention_shape import AttentionShape
from sglang_codec.kernels.kv_index import append_slots
from sglang_codec.kernels.launch import launch_config
from sglang_codec.planning.plan import PlanCapacity, PlanCapacityError
from sglang_codec.testing import (
    Counts,
    Problem,
    assert_lse_close,
    assert_within_low_precision_error,
    make_problem,
    random_counts,
    with_slots,
)

pytestmark = pytest.mark.cuda

ROWS = 24
HEADS, KV_HEADS = 16, 4
CAPACITY = PlanCapacity(rows=ROWS, tasks=4096, parts=4096, kv_index=1 << 17)
BATCHES: tuple[Counts, ...] = (
    [[("prompt", 3000), (f"question {row}", 40 + row)] for row in range(ROWS)],
    [[(f"alone {row}", 100 * row)] for row in range(ROWS)],
    random_counts(1, batch=ROWS, nodes=9, longest_run=2000),
    [[("one", 17)]],
    [],
    [[("long", 60_000), (f"tail {row}", 3)] for row in range(ROWS - 1)],
)


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


class Replayed:
    """A wrapper whose `run` is captured once, over caches that are large enough for every batch."""

    def __init__(
        self, dtype: torch.dtype, key_dim: int, value_dim: int, query_rows: int = 1
    ) -> None:
        self.dtype, self.dims = dtype, {"head_dim": key_dim, "value_dim": value_dim}
        self.query_rows = query_rows
        where = {"dtype": dtype, "device": "cuda"}
        config = None
        if query_rows > 1:  # which the kernel with warp roles has, wherever it is used by default
            shape = AttentionShape(HEADS, KV_HEADS, key_dim, value_dim, *2 * ("bfloat16",))
            config = launch_config(torch.cuda.get_device_capability(), shape)
        self.wrapper = PrefixSharedDecodeWrapper(
            HEADS,
            KV_HEADS,
            key_dim,
            head_dim_vo=value_dim,
            capacity=CAPACITY,
            config=config,
            **where,
        )
        slots = 80_000
        self.q = torch.zeros(ROWS * query_rows, HEADS, key_dim, **where)
        self.k = torch.zeros(slots, KV_HEADS, key_dim, **where)
        self.v = torch.zeros(slots, KV_HEADS, value_dim, **where)
        self.plan(PrefixForest.from_paths(with_slots(BATCHES[0])))
        self.run()  # compile outside the capture
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.out, self.lse = self.run()

    def plan(self, forest: PrefixForest) -> None:
        self.wrapper.plan(forest, query_rows=self.query_rows)

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.wrapper.run(self.q, self.k, self.v, return_lse=True)

    def problem(self, counts: Counts, seed: int) -> tuple[Problem, PrefixForest]:
        """Put a batch into the captured tensors; the rows beyond it are padding."""
        paths = with_slots(counts, seed=seed)
        problem = make_problem(
            paths,
            num_qo_heads=HEADS,
            num_kv_heads=KV_HEADS,
            **self.dims,
            dtype=self.dtype,
            device="cuda",
            padding=ROWS - len(counts),
            query_rows=self.query_rows,
            seed=seed,
        )
        self.q.copy_(problem.q)
        for buffer, values in ((self.k, problem.k_buffer), (self.v, problem.v_buffer)):
            buffer.fill_(float("nan"))
            buffer[: len(values)] = values
        return problem, PrefixForest.from_paths(paths)


DIMS = [(64, 64), (96, 96), (128, 128), (192, 128), (256, 256)]


@pytest.mark.parametrize(("dims", "query_rows"), [*((d, 1) for d in DIMS), ((128, 128), 4)])
def test_replay_under_another_plan_equals_eager(
    dims: tuple[int, int], query_rows: int, dtype: torch.dtype
) -> None:
    captured = Replayed(dtype, *dims, query_rows)
    for seed, counts in enumerate([*BATCHES, BATCHES[0]]):
        problem, forest = captured.problem(counts, seed)
        captured.plan(forest)
        captured.out.fill_(float("nan"))
        captured.graph.replay()
        replayed, replayed_lse = captured.out.clone(), captured.lse.clone()
        out, lse = captured.run()
        assert torch.equal(replayed, out)
        assert torch.equal(replayed_lse, lse)
        exact, exact_lse = problem.exact()
        assert_within_low_precision_error(replayed, exact, problem.eager())
        assert_lse_close(replayed_lse, exact_lse)


def test_replays_of_one_plan_are_equal_to_the_bit(dtype: torch.dtype) -> None:
    captured = Replayed(dtype, 128, 128)
    _, forest = captured.problem(BATCHES[2], 5)
    captured.wrapper.plan(forest)
    captured.graph.replay()
    first = captured.out.clone()
    for _ in range(20):
        captured.graph.replay()
        assert torch.equal(captured.out, first)


def test_a_captured_wrapper_refuses_what_the_graph_cannot_serve() -> None:
    captured = Replayed(torch.bfloat16, 64, 64)
    with pytest.raises(ValueError, match="a CUDA graph was captured with"):
        captured.wrapper.plan(PrefixForest.from_paths(with_slots(BATCHES[0])), sm_scale=0.3)
    with pytest.raises(ValueError, match="logits_soft_cap = 0.3, but a CUDA graph was captured"):
        captured.wrapper.plan(PrefixForest.from_paths(with_slots(BATCHES[0])), logits_soft_cap=0.3)
    with pytest.raises(ValueError, match="query_rows = 4, but a CUDA graph was captured with 1"):
        captured.wrapper.plan(PrefixForest.from_paths(with_slots(BATCHES[0])), query_rows=4)
    with pytest.raises(ValueError, match="window_left = 9, but a CUDA graph was captured with -1"):
        captured.wrapper.plan(PrefixForest.from_paths(with_slots(BATCHES[0])), window_left=9)
    growing = PrefixSharedDecodeWrapper(HEADS, KV_HEADS, 64, dtype=torch.bfloat16, device="cuda")
    growing.plan(PrefixForest.from_paths([[("a", [1, 2, 3])]]))
    arguments = (captured.q[:1], captured.k, captured.v)
    growing.run(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        growing.run(*arguments)
    with pytest.raises(PlanCapacityError, match="kv_index"):
        growing.plan(PrefixForest.from_paths([[("long", range(100_000))]]))


def test_a_later_plan_stays_within_the_smallest_captured_call() -> None:
    """More rows than its q, or slots behind its buffers: a replay would not look."""
    wrapper = PrefixSharedDecodeWrapper(HEADS, KV_HEADS, 64, dtype=torch.bfloat16, device="cuda")

    def forest(rows: int, slot: int = 0) -> PrefixForest:
        shared = [*range(300), slot]
        return PrefixForest.from_paths([[("s", shared), (row, [300 + row])] for row in range(rows)])

    def tensors(rows: int, slots: int) -> tuple[torch.Tensor, ...]:
        q = torch.randn(rows, HEADS, 64, dtype=torch.bfloat16, device="cuda")
        return q, *(torch.randn_like(q[:1, :KV_HEADS].expand(slots, -1, -1)) for _ in range(2))

    wrapper.plan(forest(4))
    memory = torch.full((64, HEADS, 64), 7.0, dtype=torch.bfloat16, device="cuda")
    calls = [(tensors(6, 900), None), (tensors(4, 2000), memory[:4])]
    wrapper.run(*calls[0][0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for arguments, out in calls:
            wrapper.run(*arguments, out=out)
    with pytest.raises(ValueError, match="5 rows, but a CUDA graph was captured with a q of 4"):
        wrapper.plan(forest(5))
    with pytest.raises(ValueError, match="slot 900, but .* buffers of 900 slots"):
        wrapper.plan(forest(2, 900))
    for batch in (forest(4, 899), forest(0)):
        wrapper.plan(batch)
        graph.replay()
        torch.cuda.synchronize()
        assert (memory[4:] == 7).all()
    assert (memory[:4] == 0).all()


def test_running_never_waits_for_the_device(dtype: torch.dtype) -> None:
    captured = Replayed(dtype, 128, 128)
    torch.cuda.set_sync_debug_mode("error")
    try:
        captured.graph.replay()
        captured.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_decoding_step_is_captured_with_its_append(dtype: torch.dtype) -> None:
    """Append and attention in one graph; rows grow over replays, the plan stays."""
    steps, counts = 6, BATCHES[0][:8]
    paths = with_slots([*counts, [("new", steps * len(counts))]], seed=3)
    problem = make_problem(
        paths, num_qo_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=128, dtype=dtype, device="cuda"
    )
    new = problem.rows.pop().view(len(counts), steps)
    problem = Problem(
        problem.q[: len(counts)], problem.k_buffer, problem.v_buffer, problem.rows, problem.sm_scale
    )
    planned = plan_batch(paths[: len(counts)], problem, tail_headroom=steps)
    buffers = planned.buffers
    lengths = torch.tensor([len(row) for row in problem.rows], device="cuda")
    slots = torch.zeros(len(counts), dtype=torch.int64, device="cuda")
    out = torch.empty_like(problem.q)

    def step() -> None:
        append_slots(
            buffers.kv_index,
            buffers.row_lengths,
            buffers.plan,
            lengths,
            slots,
            append_base_offset=buffers.layout.append_base,
        )
        update_lengths(buffers)
        prefix_shared_attention(
            problem.q,
            problem.k_buffer,
            problem.v_buffer,
            out,
            buffers,
            sm_scale=problem.sm_scale,
            config=planned.config,
        )

    before = buffers.kv_index.clone()
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    buffers.kv_index.copy_(before)
    for nth in range(steps):
        lengths += 1
        slots.copy_(new[:, nth])
        graph.replay()
        rows = [torch.cat([row, new[r, : nth + 1]]) for r, row in enumerate(problem.rows)]
        now = Problem(problem.q, problem.k_buffer, problem.v_buffer, rows, problem.sm_scale)
        assert_within_low_precision_error(out, now.exact()[0], now.eager())
