"""One request over HTTP, with a client that may go away."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from churning.traffic import Ask

# a chunk of a stream may hold all tokens so far
LONGEST_LINE = 2**22


@dataclass(slots=True)
class Served:
    """What came of a request; `error` is empty if it went as it should."""

    ask: Ask
    output_ids: list[int] = field(default_factory=list)
    aborted: bool = False
    retractions: int = 0
    error: str = ""

    @property
    def is_complete(self) -> bool:
        return not self.error and not self.aborted

    @property
    def may_come_back(self) -> bool:
        """Whether its name is free: of a closed connection nobody says when SGLang noticed."""
        return not self.error and not _hangs_up(self.ask)


def open_session(timeout_s: float, connections: int) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        connector=aiohttp.TCPConnector(limit=connections + 8),
        read_bufsize=LONGEST_LINE,
    )


async def serve(session: aiohttp.ClientSession, url: str, ask: Ask) -> Served:
    """Ask, and go away in the middle if that is what `ask` says."""
    served = Served(ask)
    leaves = ask.abort_after is not None
    sampling = {"temperature": 0, "ignore_eos": True, "max_new_tokens": ask.max_new_tokens}
    body = {"rid": ask.name, "input_ids": ask.input_ids, "sampling_params": sampling}
    try:
        async with session.post(f"{url}/generate", json=body | {"stream": leaves}) as answer:
            if answer.status != 200:
                served.error = f"{answer.status}: {(await answer.text())[:300]}"
            elif leaves:
                await _leave(session, url, answer, served)
            else:
                _take(served, await answer.json())
    except (aiohttp.ClientError, TimeoutError) as error:
        served.error = f"{type(error).__name__}: {error}"
    if served.is_complete and len(served.output_ids) != ask.max_new_tokens:
        served.error = f"{len(served.output_ids)} tokens instead of {ask.max_new_tokens}"
    return served


async def _leave(
    session: aiohttp.ClientSession, url: str, answer: aiohttp.ClientResponse, served: Served
) -> None:
    asked = False
    async for line in answer.content:
        data = line.removeprefix(b"data:").strip()
        if not data or data == b"[DONE]":
            continue
        _take(served, json.loads(data))
        if served.error or asked or len(served.output_ids) < served.ask.abort_after:
            continue
        served.aborted = asked = True
        if _hangs_up(served.ask):
            answer.close()
            return
        async with session.post(f"{url}/abort_request", json={"rid": served.ask.name}) as done:
            if done.status != 200:
                served.error = f"/abort_request answered {done.status}"


def _hangs_up(ask: Ask) -> bool:
    """Half of those that leave close the connection, the others ask SGLang to abort."""
    return ask.abort_after is not None and len(ask.input_ids) % 2 == 0


def _take(served: Served, chunk: dict[str, Any]) -> None:
    if "error" in chunk:
        served.error = str(chunk["error"])[:300]
        return
    meta = chunk["meta_info"]
    tokens, total = chunk.get("output_ids") or [], int(meta.get("completion_tokens") or 0)
    # a stream is cumulative or, by a flag of the server, incremental
    served.output_ids = tokens if len(tokens) >= total else served.output_ids + tokens
    served.retractions = int(meta.get("num_retractions") or 0)
    finish = meta.get("finish_reason")
    if isinstance(finish, dict) and finish.get("type") == "abort" and not served.aborted:
        served.error = f"aborted by the server: {finish.get('message')}"
