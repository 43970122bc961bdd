"""A model's server that is none: for tests, on loopback, the same each time. Public as `comity.testing.FakeModel`.

It speaks OpenAI's chat/completions, whole or as a stream, and counts words as tokens.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

_REQUEST_BYTES = 16 * 1024 * 1024
_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is none.

    Attributes:
        status: of HTTP, e.g. 429.
        retry_after: the header of that name.
        message: what the server says.
    """

    status: int
    retry_after: str = ""
    message: str = "no"


Answer = str | Mapping[str, Any] | Refusal


@dataclass(eq=False)
class FakeModel:
    """A model's server for the block of a `with`.

    Attributes:
        answer: what it says to a request (its body, parsed); None: to one with a schema the first value that fits,
            to another the last message.
        key: that it asks for; empty: none.
        requests: the bodies of the last 10,000 that came, oldest first.
        most_at_once: how many were under way at the same time.
    """

    answer: Callable[[dict[str, Any]], Answer] | None = None
    key: str = ""
    requests: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_KEPT), init=False)
    most_at_once: int = field(default=0, init=False)
    _script: deque[Answer] = field(default_factory=deque, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _running: int = field(default=0, init=False)

    def __enter__(self) -> FakeModel:
        model = self

        class Handler(_Handler):
            fake = model

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)

    @property
    def url(self) -> str:
        """What a back-end takes as its `base_url`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def say(self, *answers: Answer) -> None:
        """Say these next, in this order, before it says what it would say by itself."""
        with self._lock:
            self._script.extend(answers)

    def take(self, body: dict[str, Any]) -> Answer:
        """Choose what is said to a request."""
        with self._lock:
            self.requests.append(body)
            if self._script:
                return self._script.popleft()
        if self.answer is not None:
            return self.answer(body)
        wanted = body.get("response_format", {}).get("json_schema", {}).get("schema")
        return json.dumps(_smallest(wanted)) if wanted is not None else str(body["messages"][-1]["content"])

    def count(self, step: int) -> None:
        """Count a request that begins (1) or ends (-1)."""
        with self._lock:
            self._running += step
            self.most_at_once = max(self.most_at_once, self._running)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401  (socketserver's own)
        """A client that goes away is its own affair; the base class would print a traceback."""


class _Handler(BaseHTTPRequestHandler):
    fake: FakeModel
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", "0"))
        if self.path != "/v1/chat/completions" or not 0 <= length <= _REQUEST_BYTES:
            self._refuse(Refusal(404, message="there is nothing here"))
        elif self.fake.key and self.headers.get("authorization") != f"Bearer {self.fake.key}":
            self.rfile.read(length)
            self._refuse(Refusal(401, message="the key is wrong"))
        else:
            self.fake.count(1)
            try:
                body = json.loads(self.rfile.read(length))
                self._answer(body, self.fake.take(body))
            finally:
                self.fake.count(-1)

    def _answer(self, body: dict[str, Any], answer: Answer) -> None:
        if isinstance(answer, Refusal):
            self._refuse(answer)
            return
        text = answer if isinstance(answer, str) else json.dumps(answer)
        prompt = sum(len(str(each.get("content", "")).split()) for each in body["messages"])
        words = text.split(" ")
        usage = {"prompt_tokens": prompt, "completion_tokens": len(words), "total_tokens": prompt + len(words)}
        head: dict[str, Any] = {"id": "fake", "model": body.get("model", ""), "created": 0}
        if body.get("stream"):
            pieces = [word if n == 0 else f" {word}" for n, word in enumerate(words)]
            events: list[dict[str, Any]] = [
                {"index": 0, "delta": {"content": piece}, "finish_reason": None} for piece in pieces
            ]
            events.append({"index": 0, "delta": {}, "finish_reason": "stop"})
            kind = {**head, "object": "chat.completion.chunk"}
            chunks: list[dict[str, Any]] = [{**kind, "choices": [event]} for event in events]
            if body.get("stream_options", {}).get("include_usage"):
                chunks.append({**kind, "choices": [], "usage": usage})
            lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
            self._send(200, lines.encode(), "text/event-stream")
            return
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }
        whole: dict[str, Any] = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
        self._send(200, json.dumps(whole).encode())

    def _refuse(self, refusal: Refusal) -> None:
        extra = {"retry-after": refusal.retry_after} if refusal.retry_after else {}
        self._send(refusal.status, json.dumps({"error": {"message": refusal.message}}).encode(), extra=extra)

    def _send(
        self, status: int, body: bytes, kind: str = "application/json", extra: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(body)), **(extra or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


def _smallest(schema: Mapping[str, Any]) -> Any:  # noqa: ANN401  (any JSON value)
    """Return the first value that fits a schema of the kind that `comity.models` checks."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "object" if "properties" in schema else "null")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {name: _smallest(inner) for name, inner in schema.get("properties", {}).items()}
    if kind == "array":
        return [_smallest(schema.get("items", {})) for _ in range(schema.get("minItems", 0))]
    if kind == "string":
        return "x" * schema.get("minLength", 0)
    if kind in ("number", "integer"):
        return max(0, schema["minimum"]) if "minimum" in schema else min(0, schema.get("maximum", 0))
    return False if kind == "boolean" else None
