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
ROUND_US = 20_000.0  # and a round of replays about this long
WARM_UP_US = 15_000.0


def calls_per_replay(layers: int, limit_us: float) -> int:
    """A whole number of cycles through the layers, long enough to measure."""
    cycles = round(REPLAY_US / max(limit_us, 8.0) / layers)
    return layers * max(1, min(cycles, MAX_CALLS // layers))


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


def make_sampler(device: torch.device) -> Callable[[Run, int, int], Sampler]:
    return graph_sampler if device.type == "cuda" else host_sampler


def measure(samplers: dict[str, Sampler], calls: int, rounds: int) -> dict[str, float]:
    """Median microseconds per call; the candidates take turns, so that all see the same drift."""
    replays: dict[str, int] = {}
    for name, sample in samplers.items():
        replay_us = statistics.median(sample(2)) * calls
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
