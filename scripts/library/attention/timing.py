"""Time per call from CUDA-graph replays, hardware ceilings, and planning time."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

Run = Callable[[int], torch.Tensor]  # layer -> output
Sampler = Callable[[int], list[float]]  # number of replays -> microseconds per call

REPLAY_US = 2000.0  # a replay is about this long, so that its own start does not count
MAX_CALLS = 512
HOST_US = 300.0  # launching a call from the host takes less than this
ROUND_US = 20_000.0  # and a round of replays about this long
WARM_UP_US = 15_000.0
QUEUED_CALLS = 48  # a device takes about a thousand launches before the host has to wait
SPIN_CYCLES_PER_US = 2000  # no GPU so far clocks higher
LONGEST_SPIN_US = 100_000.0


def calls_per_replay(layers: int, limit_us: float, eager_us: float = 0.0) -> int:
    """A whole number of cycles through the layers, long enough to measure.

    Args:
        limit_us: the least that a call can take, in microseconds.
        eager_us: what a call took when the host launched it. A slow kernel then gets fewer calls;
            below `HOST_US` it may be the host's own time and does not count.
    """
    call_us = max(limit_us, eager_us if eager_us > HOST_US else 0.0, 8.0)
    cycles = round(REPLAY_US / call_us / layers)
    return layers * max(1, min(cycles, MAX_CALLS // layers))


def eager_us(run: Run, layers: int, device: torch.device) -> float:
    """Microseconds of one call that the host launches, after one that compiles; 0 without a GPU."""
    if device.type != "cuda":
        return 0.0
    for layer in (0, layers - 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(layer)
        end.record()
        torch.cuda.synchronize()
    return start.elapsed_time(end) * 1e3


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def capture(run: Run, layers: int, calls: int) -> torch.cuda.CUDAGraph:
    """A graph of `calls` calls that cycle through the layers.

    Done by hand because `torch.cuda.graph` collects garbage and empties the cache each time, which
    takes longer than a measurement once a serving engine is imported.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for layer in range(min(layers, 2)):
            run(layer)  # compile and allocate outside of the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with no_garbage_collection(), torch.cuda.stream(stream):
        graph.capture_begin()
        try:
            for call in range(calls):
                run(call % layers)
        except BaseException:
            with suppress(Exception):  # ending a broken capture fails too: the cause is what counts
                graph.capture_end()
            raise
        graph.capture_end()
    torch.cuda.synchronize()
    return graph


def graph_sampler(run: Run, layers: int, calls: int) -> Sampler:
    graph = capture(run, layers, calls)

    def sample(replays: int) -> list[float]:
        events = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in range(replays)
        ]
        for start, end in events:
            start.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e3 / calls for start, end in events]

    return sample


class QueuedSampler:
    """For kernels that no CUDA graph can hold: the host queues the calls behind a spinning one.

    The device then runs them back to back, and what the host takes to launch them does not count,
    unless it is still at it when the spin ends; `host_bound` says whether that was so in the latest
    sample, and the next spin is longer.
    """

    def __init__(self, run: Run, layers: int, calls: int) -> None:
        self.run, self.layers, self.calls = run, layers, min(calls, QUEUED_CALLS)
        self.host_bound = False
        self._next_layer = 0
        self._queue()  # compiles and allocates
        torch.cuda.synchronize()
        start = time.perf_counter()
        self._queue()
        self._spin_us = 2e6 * (time.perf_counter() - start)
        torch.cuda.synchronize()

    def __call__(self, replays: int) -> list[float]:
        samples = []
        for _ in range(replays):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(int(self._spin_us * SPIN_CYCLES_PER_US))
            start.record()
            self._queue()
            end.record()
            self.host_bound = start.query()
            if self.host_bound:
                self._spin_us = min(2 * self._spin_us, LONGEST_SPIN_US)
            torch.cuda.synchronize()
            samples.append(start.elapsed_time(end) * 1e3 / self.calls)
        return samples

    def _queue(self) -> None:
        for _ in range(self.calls):
            self.run(self._next_layer)
            self._next_layer = (self._next_layer + 1) % self.layers


def host_sampler(run: Run, layers: int, calls: int) -> Sampler:
    """The same without a GPU: for tests of the benchmark itself."""

    def sample(replays: int) -> list[float]:
        samples = []
        for _ in range(replays):
            start = time.perf_counter()
            for call in range(calls):
                run(call % layers)
            samples.append((time.perf_counter() - start) * 1e6 / calls)
        return samples

    return sample


def make_sampler(
    device: torch.device, capturable: bool = True
) -> Callable[[Run, int, int], Sampler]:
    if device.type != "cuda":
        return host_sampler
    return graph_sampler if capturable else QueuedSampler


def measure(
    samplers: dict[str, Sampler], calls: int | dict[str, int], rounds: int
) -> dict[str, float]:
    """Median microseconds per call; the candidates take turns, so that all see the same drift.

    Args:
        calls: in each replay, the same for all samplers or by name.
    """
    replays: dict[str, int] = {}
    for name, sample in samplers.items():
        in_replay = calls[name] if isinstance(calls, dict) else calls
        replay_us = statistics.median(sample(2)) * in_replay
        sample(max(1, min(100, round(WARM_UP_US / max(replay_us, 1.0)))))
        replays[name] = max(5, min(40, round(ROUND_US / max(replay_us, 1.0))))
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    for _ in range(rounds):
        for name, sample in samplers.items():
            sample(1)  # what another candidate left in L2 is not this one's to use
            samples[name] += sample(replays[name])
    return {name: statistics.median(values) for name, values in samples.items()}


def time_host(call: Callable[[int], object], repeats: int, device: torch.device) -> float:
    """Median milliseconds of `call(i)`, upload included: the device is idle before and after."""
    times = []
    with no_garbage_collection():
        for i in range(repeats):
            synchronize(device)
            start = time.perf_counter()
            call(i)
            synchronize(device)
            times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_alive(device: torch.device) -> bool:
    """Whether the device still works: an illegal access ends a CUDA context for good."""
    try:
        synchronize(device)
    except Exception:
        return False
    return True


def ceilings(device: torch.device) -> dict[str, float]:
    """What the device reaches on a plain copy, a plain reduction and a bf16 matrix product."""
    on_gpu = device.type == "cuda"
    elements = 2**29 if on_gpu else 2**20
    source = torch.empty(elements, dtype=torch.float32, device=device).normal_()
    target = torch.empty_like(source)
    copy_s = _seconds(lambda: target.copy_(source), device)
    read_s = min(_seconds(source.sum, device), _seconds(source.amax, device))
    size = 8192 if on_gpu else 256
    a = torch.randn(size, size, device=device).bfloat16()
    b = torch.randn(size, size, device=device).bfloat16()
    matmul_s = _seconds(lambda: a @ b, device)
    return {
        "copy_TBps": 2 * source.nbytes / copy_s / 1e12,
        "read_TBps": source.nbytes / read_s / 1e12,
        "bf16_TFLOPs": 2 * size**3 / matmul_s / 1e12,
    }


def _seconds(call: Callable[[], object], device: torch.device, batches: int = 5) -> float:
    """Seconds per call: the best of a few batches of calls."""
    per_batch = range(5)
    times = []
    for _ in range(batches + 1):
        synchronize(device)
        start = time.perf_counter()
        for _ in per_batch:
            call()
        synchronize(device)
        times.append((time.perf_counter() - start) / len(per_batch))
    return min(times[1:])
