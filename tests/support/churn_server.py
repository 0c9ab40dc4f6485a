"""Stands in for an SGLang server where only `scripts/serve/churn.py` is tested."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeServer(ThreadingHTTPServer):
    """Answers every prompt with the tokens 7, 8, 9, ...; the attributes are its faults.

    Args:
        missing: tokens that every answer lacks. leaked: KV tokens that stay in use per flush.
        fallbacks: of codec, by reason. refuses: every request fails.
    """

    daemon_threads = True

    def __init__(
        self,
        *,
        missing: int = 0,
        leaked: int = 0,
        fallbacks: dict[str, int] | None = None,
        refuses: bool = False,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.missing, self.leaked, self.refuses = missing, leaked, refuses
        self.codec = {"steps": 0, "plans": 0, "plan_seconds": 0.0, "fallbacks": fallbacks or {}}
        self.codec |= {"kv_tokens_read": 0, "kv_tokens_stock": 0}
        self.asked: list[dict[str, Any]] = []
        self.aborts: list[str] = []
        self.flushes = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def fake_server(**faults: Any) -> Iterator[FakeServer]:
    with FakeServer(**faults) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/server_info":
            self._json({"model_path": "model", "internal_states": [{"codec": self.server.codec}]})
        elif self.path == "/v1/loads":
            used = self.server.leaked * self.server.flushes
            self._json({"loads": [{"num_used_tokens": used}]})
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        if self.path == "/flush_cache":
            self.server.flushes += 1
            self._json({})
        elif self.path == "/abort_request":
            self.server.aborts.append(body["rid"])
            self._json({})
        elif self.server.refuses:
            self._json({"error": {"message": "no"}}, status=400)
        else:
            self._generate(body)

    def _generate(self, body: dict[str, Any]) -> None:
        self.server.asked.append(body)
        wanted = body["sampling_params"]["max_new_tokens"] - self.server.missing
        self.server.codec["steps"] += wanted
        self.server.codec["plans"] += 1
        if not body["stream"]:
            self._json(_chunk(wanted, "length"))
            return
        self.send_response(200)
        self.end_headers()
        try:
            for tokens in range(wanted + 1):
                ends = body["rid"] in self.server.aborts
                self._send(_chunk(tokens, "abort" if ends else None))
                if ends:
                    break
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client hung up

    def _send(self, chunk: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        self.wfile.flush()

    def _json(self, value: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def _chunk(tokens: int, finish: str | None) -> dict[str, Any]:
    meta = {"completion_tokens": tokens, "finish_reason": {"type": finish} if finish else None}
    return {"output_ids": list(range(7, 7 + tokens)), "meta_info": meta}
