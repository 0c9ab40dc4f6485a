"""Servers side by side: their places, and what is heard of processes that end well or badly."""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from pathlib import Path

import fake_sglang
import pytest
from hypothesis import given
from hypothesis import strategies as st
from library.servers import server
from library.servers.server import running_server
from serving import places
from serving.jobs import DEFAULT, Job, Variant
from serving.places import Place, parse_gpus, places_of
from serving.workers import Tell, run_jobs

CORES = frozenset(os.sched_getaffinity(0))


def job(name: str) -> Job:
    return Job(name, Variant(DEFAULT), ())


@given(cores=st.sets(st.integers(0, 200), min_size=1), count=st.integers(1, 9))
def test_shares_of_the_cores_are_equal_and_disjoint(cores: set[int], count: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: cores)
        gpus = [(gpu,) for gpu in range(count)]
        if len(cores) < count:
            with pytest.raises(ValueError, match="name fewer GPUs"):
                places_of(gpus)
            return
        found = places_of(gpus)
        assert [place.gpus for place in found] == gpus
        assert {len(place.cores) for place in found} == {len(cores) // count}
        assert len(frozenset().union(*(p.cores for p in found))) == count * (len(cores) // count)
        assert places_of(None) == [Place((), frozenset(cores))]


def test_threads_of_a_core_stay_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sockets of two cores, numbered as Linux does: second threads after all first ones."""
    for cpu in range(8):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{cpu % 4 // 2}\n")
        (folder / "core_id").write_text(f"{cpu % 2}\n")
    monkeypatch.setattr(places, "TOPOLOGY", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    found = places_of([(0,), (1,), (2,), (3,)])
    assert [set(place.cores) for place in found] == [{0, 4}, {1, 5}, {2, 6}, {3, 7}]
    assert [set(place.cores) for place in places_of([(0,), (1,)])] == [{0, 1, 4, 5}, {2, 3, 6, 7}]


def test_gpus_are_named_once() -> None:
    assert parse_gpus("3,0") == [(3,), (0,)]
    assert parse_gpus("0+1,2+3") == [(0, 1), (2, 3)]
    assert parse_gpus("all")[0] == (0,)
    for text in ("", "x", "0,0", "0+1,1", "-1", "0,"):
        with pytest.raises(argparse.ArgumentTypeError, match="name each GPU once"):
            parse_gpus(text)


@pytest.mark.parametrize(
    ("visible", "gpus", "expected"),
    [
        (None, (2, 0), "2,0"),
        ("4,5,7", (2, 0), "7,4"),
        ("GPU-a,GPU-b", (1,), "GPU-b"),
        ("4,5", (), "4,5"),
        ("", (1,), ""),
    ],
)
def test_a_server_sees_its_gpus_only(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, gpus: tuple[int, ...], expected: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    Place(gpus, CORES).enter()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def test_each_job_runs_once_and_as_many_at_a_time_as_there_are_places() -> None:
    core = min(CORES)
    spots = [Place((0,), frozenset({core})), Place((1,), frozenset({core}))]
    heard: list[tuple[str, str, object]] = []

    def work(job: Job, _place: Place, tell: Tell) -> None:
        tell(("cores", os.sched_getaffinity(0), os.environ["CUDA_VISIBLE_DEVICES"]))
        tell(("from", time.monotonic()))
        time.sleep(0.3)
        tell(("to", time.monotonic()))

    names = [f"job {i}" for i in range(5)]
    broken = run_jobs(
        map(job, names),
        spots,
        work,
        lambda job, place, told: heard.append((job.backend, place.name, told)),
    )
    assert broken == []
    assert os.sched_getaffinity(0) == CORES
    for name in names:
        (gpu,) = {place for who, place, _ in heard if who == name}
        told = [what for who, _, what in heard if who == name]
        assert [what[0] for what in told] == ["cores", "from", "to"]
        assert told[0][1:] == ({core}, gpu)
    spans = [
        (place, *(what[1] for who, _, what in heard if who == name and what[0] != "cores"))
        for name in names
        for place in sorted({place for who, place, _ in heard if who == name})
    ]
    for gpu in ("0", "1"):
        own = sorted(span[1:] for span in spans if span[0] == gpu)
        assert own
        assert all(end <= start for (_, end), (start, _) in zip(own, own[1:], strict=False))


def test_a_process_that_dies_costs_only_its_job(capfd: pytest.CaptureFixture[str]) -> None:
    def work(job: Job, _place: Place, tell: Tell) -> None:
        tell(job.backend)
        if job.backend == "killed":
            os._exit(9)
        if job.backend == "wrong":
            raise RuntimeError("a mistake")
        tell("end")

    heard: list[object] = []
    jobs = [job(name) for name in ("killed", "wrong", "right")]
    broken = run_jobs(jobs, [Place((), CORES)], work, lambda *told: heard.append(told[-1]))
    assert [one.backend for one in broken] == ["killed", "wrong"]
    assert heard == ["killed", "wrong", "right", "end"]
    assert "a mistake" in capfd.readouterr().err


@pytest.mark.parametrize("signals", [0, 1, 2])
def test_servers_end_with_the_program_that_started_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: int
) -> None:
    """However often the process that started one is told to end, and if it takes a while."""
    program = tmp_path / "server.py"
    program.write_text(
        "import runpy, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"runpy.run_path({fake_sglang.__file__!r}, run_name='__main__')\n"
    )
    monkeypatch.setattr(server, "PROGRAM", (str(program),))
    monkeypatch.setattr(server, "STOP_LIMIT_S", 1)
    found: list[int] = []

    def work(job: Job, _place: Place, tell: Tell) -> None:
        with running_server(job.backend, [], tmp_path, start_limit_s=60) as running:
            tell((os.getpid(), running.process.pid))
            threading.Event().wait(60)

    def hear(_job: Job, _place: Place, pids: tuple[int, int]) -> None:
        found.append(pids[1])
        for _ in range(signals):
            os.kill(pids[0], signal.SIGTERM)
            os.kill(pids[0], signal.SIGINT)
            time.sleep(0.05)
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_jobs([job("stock")], [Place((), CORES)], work, hear)
    assert time.monotonic() - started < 50
    with pytest.raises(ProcessLookupError):
        os.kill(found[0], 0)
