"""Greedy generation with timing, by an engine in this process or by a running server.

Both are asked in one streamed call for the whole batch, so that all requests arrive together, and
both answer with the same stream of dictionaries.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

OnToken = Callable[[int], None]
FLUSH_ATTEMPTS = 20


class GenerationError(RuntimeError):
    """A server or an engine cannot be reached, or refused or aborted a request."""


@dataclass(frozen=True, slots=True)
class Request:
    """A named prompt in token ids."""

    name: str
    input_ids: tuple[int, ...]
    max_new_tokens: int

    def __post_init__(self) -> None:
        if not self.input_ids or self.max_new_tokens < 1:
            raise ValueError(
                f"request {self.name!r} has {len(self.input_ids)} prompt tokens and asks for"
                f" {self.max_new_tokens} new ones: need at least 1 of each"
            )


@dataclass(slots=True)
class Completion:
    """What came back for a request, and when."""

    request: Request
    output_ids: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    # (seconds since the request was sent, new tokens) of each chunk of the stream
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    # per output token: (token id, logprob) of the most likely tokens, best first
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)

    def seconds_per_token(self) -> float | None:
        """Mean time between tokens after the first, None for fewer than two tokens."""
        steps = len(self.output_ids) - 1
        return (self.last_token_s - self.first_token_s) / steps if steps > 0 else None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to generate: always greedily, to the last token asked for.

    Args:
        top: ask for that many logprobs per token; 0 for none.
        stream_interval: tokens per chunk of the stream; 0 leaves it to the server.
    """

    top: int = 0
    stream_interval: int = 0


def generate_payload(requests: Sequence[Request], sampling: Sampling) -> dict[str, Any]:
    """The arguments of SGLang's native generate call."""
    common: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
    if sampling.stream_interval:
        common["stream_interval"] = sampling.stream_interval
    payload: dict[str, Any] = {
        "input_ids": [list(request.input_ids) for request in requests],
        "sampling_params": [
            common | {"max_new_tokens": request.max_new_tokens} for request in requests
        ],
        "stream": True,
    }
    if sampling.top:
        payload |= {"return_logprob": True, "top_logprobs_num": sampling.top}
    return payload


def collect(
    requests: Sequence[Request],
    chunks: Iterable[dict[str, Any]],
    started: float,
    on_token: OnToken | None = None,
) -> list[Completion]:
    """Fold a stream of chunks into one completion per request."""
    completions = [Completion(request) for request in requests]
    for chunk in chunks:
        now = time.perf_counter() - started
        if "error" in chunk:
            raise GenerationError(f"generation failed: {chunk['error']}")
        meta = chunk["meta_info"]
        completion = completions[chunk.get("index", 0)]
        finish = meta.get("finish_reason")
        if isinstance(finish, dict) and finish.get("type") == "abort":
            message = finish.get("message") or "no reason given"
            raise GenerationError(f"request {completion.request.name!r} was aborted: {message}")
        before = len(completion.output_ids)
        total = int(meta["completion_tokens"])
        _extend(completion.output_ids, chunk.get("output_ids", []), total)
        _extend(completion.logprobs, [e[0] for e in meta.get("output_token_logprobs") or []], total)
        _extend(
            completion.top_logprobs,
            [
                [(int(token), float(logprob)) for logprob, token, *_ in top or []]
                for top in meta.get("output_top_logprobs") or []
            ],
            total,
        )
        completion.cached_tokens = int(meta.get("cached_tokens") or 0)
        new = len(completion.output_ids) - before
        if new <= 0:
            continue
        if before == 0:
            completion.first_token_s = now
        completion.last_token_s = now
        completion.arrivals.append((now, new))
        if on_token is not None:
            on_token(new)
    if empty := [done.request.name for done in completions if not done.output_ids]:
        raise GenerationError(f"no token came back for {len(empty)} requests, first {empty[0]!r}")
    return completions


def _extend(collected: list[Any], received: list[Any], total: int) -> None:
    # a stream is cumulative (all tokens so far) or incremental, by a server flag; a cumulative
    # chunk may hold more than its total: SGLang sends a list that it goes on filling
    if len(received) >= total:
        collected[:] = received
    else:
        collected.extend(received)


class EngineClient:
    """`sglang.Engine` in this process."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, on_token: OnToken | None = None
    ) -> list[Completion]:
        """Serve all requests together; completions come in the order of the requests."""
        started = time.perf_counter()
        chunks = self.engine.generate(**generate_payload(requests, sampling))
        return collect(requests, chunks, started, on_token)


class ServerClient:
    """A running SGLang server, by its native /generate."""

    def __init__(self, url: str, timeout_s: float = 3600.0) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, on_token: OnToken | None = None
    ) -> list[Completion]:
        # long prompts take a while to encode, which is not the server's time
        body = json.dumps(generate_payload(requests, sampling)).encode()
        started = time.perf_counter()
        return collect(requests, self._stream(body), started, on_token)

    def post(self, route: str, body: dict[str, Any] | None = None) -> str:
        """What another route of the server answers."""
        import requests as http

        try:
            answer = http.post(self.url + route, json=body, timeout=self.timeout_s)
        except http.RequestException as error:
            raise GenerationError(f"{self.url}{route}: {type(error).__name__}") from error
        if not answer.ok:
            raise GenerationError(
                f"{self.url}{route} answered {answer.status_code}: {answer.text[:500]}"
            )
        return answer.text

    def flush(self) -> None:
        """Empty the radix cache; a server that is still ending a request refuses for a moment."""
        for attempt in range(FLUSH_ATTEMPTS):
            try:
                self.post("/flush_cache")
                return
            except GenerationError:
                if attempt == FLUSH_ATTEMPTS - 1:
                    raise
                time.sleep(0.25)

    def info(self) -> dict[str, Any]:
        """The server's flags (attention_backend, tokenizer_path and others)."""
        import requests as http

        for route in ("/server_info", "/get_server_info"):
            try:
                answer = http.get(self.url + route, timeout=30)
            except http.RequestException as error:
                raise GenerationError(
                    f"no SGLang server answers at {self.url} ({type(error).__name__}): start one,"
                    " or correct --url"
                ) from error
            if answer.ok:
                return answer.json()
        raise GenerationError(f"{self.url}{route} answered {answer.status_code}: is it SGLang?")

    def _stream(self, body: bytes) -> Iterator[dict[str, Any]]:
        import requests as http

        url, kind = f"{self.url}/generate", {"Content-Type": "application/json"}
        options: dict[str, Any] = {"headers": kind, "stream": True, "timeout": self.timeout_s}
        with http.post(url, data=body, **options) as answer:
            if not answer.ok:
                raise GenerationError(f"{url} answered {answer.status_code}: {answer.text[:500]}")
            # the default chunk of 512 bytes would delay tokens
            for line in answer.iter_lines(chunk_size=None):
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    return
                if data:
                    yield json.loads(data)


Client = EngineClient | ServerClient
