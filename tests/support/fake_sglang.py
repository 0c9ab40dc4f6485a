"""Stands in for `python -m sglang.launch_server` where only the way to and from it is tested.

It answers the routes that the serving benchmark uses. A request's tokens follow from its prompt.
A prompt of `FATAL_TOKENS` tokens ends it, as an error in a scheduler does. The backend `odd` gives
the first request of a batch other tokens; `broken` never starts.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STEP_S = 0.01
FATAL_TOKENS = 13  # a prompt of so many tokens ends the server
LOG_EVERY = 8
SAVED_TOKENS = 5  # KV tokens of every step that codec does not read


class State:
    """What the server knows of itself."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.codec = {"steps": 0, "plans": 0, "plan_seconds": 0.0}
        self.codec |= {"kv_tokens_read": 0, "kv_tokens_stock": 0, "fallbacks": {}}

    def info(self) -> dict[str, Any]:
        state = {"codec": self.codec} if self.backend == "codec" else {}
        return {"dtype": "bfloat16", "tp_size": 1, "internal_states": [state]}

    def count(self, tokens: int) -> None:
        self.codec["steps"] += 1
        self.codec["kv_tokens_stock"] += tokens
        self.codec["kv_tokens_read"] += tokens - SAVED_TOKENS


def stream(state: State, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The chunks of all requests of a call."""
    alone = "input_ids" not in body or isinstance(body["input_ids"][0], int)
    prompts = [body.get("input_ids") or [len(body["text"])]] if alone else body["input_ids"]
    sampling = [body["sampling_params"]] if alone else body["sampling_params"]
    if any(len(prompt) == FATAL_TOKENS for prompt in prompts):
        print("Traceback (most recent call last):\nValueError: a prompt that it cannot bear")
        sys.stdout.flush()
        os._exit(1)
    batch, interval = len(prompts), sampling[0].get("stream_interval") or 1
    outputs: list[list[int]] = [[] for _ in prompts]
    steps = sampling[0]["max_new_tokens"]
    for step in range(1, steps + 1):
        time.sleep(STEP_S)
        if step > 1:
            state.count(sum(map(len, prompts)) + batch * (step - 1))
        if step % LOG_EVERY == 0:
            print(
                f"[12:00:00] Decode batch, #running-req: {batch}, #token: 9, token usage: 0.01, "
                f"cuda graph: True, gen throughput (token/s): {batch / STEP_S:.2f}, #queue-req: 0",
                flush=True,
            )
        for index, prompt in enumerate(prompts):
            odd = state.backend == "odd" and index == 0
            outputs[index].append((sum(prompt) + step + odd) % 97)
            if step == steps or step % interval == 1 % interval:
                meta = {"completion_tokens": step, "cached_tokens": 0, "finish_reason": None}
                meta["finish_reason"] = {"type": "length"} if step == steps else None
                text = " ".join(f"w{token}" for token in outputs[index])
                yield {"index": index, "output_ids": outputs[index], "text": text} | {
                    "meta_info": meta
                }


def handler(state: State) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            routes = {"/health": {}, "/server_info": state.info(), "/v1/models": {"data": []}}
            self._answer(routes.get(self.path))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path != "/generate":
                self._answer({} if self.path in ("/flush_cache", "/abort_request") else None)
                return
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for chunk in stream(state, json.loads(body)):
                self._send(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            self._send(b"data: [DONE]\n\n")
            self._send(b"")

        def _send(self, data: bytes) -> None:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

        def _answer(self, content: dict[str, Any] | None) -> None:
            text = json.dumps(content).encode()
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--port", type=int)
    parser.add_argument("--attention-backend")
    args, _ = parser.parse_known_args()
    print(*sys.argv, flush=True)
    if args.attention_backend == "broken":
        raise RuntimeError("it is broken")
    server = ThreadingHTTPServer(("127.0.0.1", args.port), handler(State(args.attention_backend)))
    server.serve_forever()


if __name__ == "__main__":
    main()
