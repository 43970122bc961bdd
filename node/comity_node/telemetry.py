"""Logging of a node: set up once, by the command that runs it, and never on import."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

#: Libraries that tell more than an operator wants to read.
_TALKATIVE = ("libp2p", "grpc", "asyncio", "multiaddr", "zeroconf", "httpx", "httpcore", "flwr")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (UTC), `level`, `logger`, `message`, the record's extra fields and `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        fields: dict[str, object] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields.update((key, value) for key, value in vars(record).items() if key not in _STANDARD)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """`2030-01-02T03:04:05.678Z warning comity_node.links: message key=value`, on one line but for tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        extra = [f"{key}={value}" for key, value in vars(record).items() if key not in _STANDARD]
        # A peer's text may end up in a message: it must not look like a line of its own.
        message = " ".join([record.getMessage(), *extra]).replace("\r", "\\r").replace("\n", "\\n")
        line = f"{_timestamp(record)} {record.levelname.lower()} {record.name}: {message}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure(level: str = "info", form: str = "text", stream: TextIO | None = None) -> None:
    """Send every log record of at least `level` to `stream` (standard error), as `text` or `json`.

    Libraries are heard from `warning` on. Handlers that were there before are taken away.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _TALKATIVE:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(max(logging.WARNING, root.level))
