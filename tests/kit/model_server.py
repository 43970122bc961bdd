"""A server that answers raw bytes, however wrong, to each connection."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

Behaviour = Callable[[socket.socket, bytes], None]


def head(status: str = "200 OK", kind: str = "application/json", *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", "connection: close", *more, "", ""]
    return "\r\n".join(lines).encode()


@contextlib.contextmanager
def raw_server(behave: Behaviour) -> Iterator[str]:
    """Serve each connection on a thread: read one request, and leave the rest to `behave`; yields the base URL."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(20)
            behave(connection, _read_request(connection))

    def accept() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        over.set()
        with contextlib.suppress(OSError), socket.create_connection(listener.getsockname()):
            pass  # wakes the accepting thread
        accepting.join(5)
        listener.close()


def _read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536) or _gone()
    start, _, body = data.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in start.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += connection.recv(65536) or _gone()
    return start + b"\r\n\r\n" + body


def _gone() -> bytes:
    raise ConnectionResetError
