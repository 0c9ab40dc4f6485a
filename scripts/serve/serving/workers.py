"""Jobs side by side: a process per job, so that neither clients nor servers wait for one another.

Only the process that starts them hears of results, and so it alone writes them down.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, wait
from typing import Any

from library.servers.server import leave_on_sigterm

from serving.jobs import Job
from serving.places import Place

Tell = Callable[[Any], None]
Work = Callable[[Job, Place, Tell], None]
Hear = Callable[[Job, Place, Any], None]

# what is told is small, and no process here touches a GPU: only the servers do
CONTEXT = multiprocessing.get_context("fork")


def run_jobs(jobs: Iterable[Job], places: Iterable[Place], work: Work, hear: Hear) -> list[Job]:
    """Run every job as soon as a place is free; those whose process ended with an error.

    Args:
        work: runs in a process of its own, confined to the place; what it tells is heard here.
        hear: called for each thing told, one at a time.
    """
    waiting, free, broken = list(jobs), list(places), []
    running: dict[Connection, tuple[Job, Place, multiprocessing.Process]] = {}
    try:
        while waiting or running:
            while waiting and free:
                job, place = waiting.pop(0), free.pop(0)
                mouth, process = _start(work, job, place)
                running[mouth] = job, place, process
            for mouth in wait(list(running)):
                job, place, process = running[mouth]
                try:
                    hear(job, place, mouth.recv())
                except EOFError:
                    process.join()
                    broken += [job] if process.exitcode else []
                    free.append(place)
                    del running[mouth]
    finally:
        for *_, process in running.values():
            process.terminate()
        for *_, process in running.values():
            process.join()
    return broken


def _start(work: Work, job: Job, place: Place) -> tuple[Connection, multiprocessing.Process]:
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_confined, args=(work, job, place, there))
    process.start()
    there.close()
    return here, process


def _confined(work: Work, job: Job, place: Place, there: Connection) -> None:
    # one way to end it: the program that started it says so
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    leave_on_sigterm()
    place.enter()
    work(job, place, there.send)
