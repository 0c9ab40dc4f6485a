"""Keeps a server busy with requests that join and leave, until enough of them were served."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from churning.client import Served, open_session, serve
from churning.traffic import Ask, Traffic

READ_LIMIT_S = 600.0
REST, REST_S = 0.1, 0.05  # share of requests after which a client rests, and for how long
ERRORS_LIMIT = 20  # of one round: the server is lost
# SGLang aborts whoever has the name of an ended request: two seconds after a stream, and when it
# collects what is left of any other handler
NAME_REST_S = 5.0


@dataclass
class Round:
    """Requests between two flushes of the cache.

    Args:
        requests: at most so many. deadline: `time.monotonic()` after which none is started.
    """

    url: str
    traffic: Traffic
    concurrency: int
    requests: int
    deadline: float
    seed: int
    served: list[Served] = field(default_factory=list)

    def run(self) -> list[Served]:
        """All that was served; everything has ended when this returns."""
        asyncio.run(self._run())
        return self.served

    async def _run(self) -> None:
        asks = iter(self.traffic)
        self._left = self.requests
        async with open_session(READ_LIMIT_S, self.concurrency) as session:
            clients = [
                self._client(session, asks, random.Random(1000 * self.seed + number))
                for number in range(self.concurrency)
            ]
            await asyncio.gather(*clients)

    async def _client(self, session, asks: Iterator[Ask], rest: random.Random) -> None:
        while self._left > 0 and time.monotonic() < self.deadline:
            self._left -= 1
            served = await serve(session, self.url, next(asks))
            self.served.append(served)
            if served.may_come_back:
                asyncio.get_running_loop().call_later(
                    NAME_REST_S, self.traffic.finished, served.ask, served.output_ids
                )
            if sum(1 for s in self.served if s.error) >= ERRORS_LIMIT:
                self._left = 0
            if rest.random() < REST:
                await asyncio.sleep(rest.expovariate(1 / REST_S))


def serve_alone(url: str, asks: Sequence[Ask]) -> list[Served]:
    """One after the other."""

    async def run() -> list[Served]:
        async with open_session(READ_LIMIT_S, 1) as session:
            return [await serve(session, url, ask) for ask in asks]

    return asyncio.run(run())
