"""How arms reach the back-end: one connection, many requests under way; and how a run is begun and ended."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final, Self, cast

from bench.runtime.backend import ANSWER, REQUEST

_ROOT: Final = Path(__file__).resolve().parent.parent.parent
_END_S: Final = 10.0


class BackendProcess:
    """The back-end's process, for as long as the block lasts."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "backend.sock")

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "bench.runtime.backend", self.path]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT)
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        _pipe(self._process.stdin).close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _pipe(self._process.stdout).close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def begin(self, slots: Sequence[int], stall: tuple[int, float, float] | None = None) -> None:
        """Forget what was; all slots are free.

        Args:
            slots: of each pool.
            stall: a site, after how many seconds it stands still, and for how many.
        """
        self._ask({"begin": list(slots), "stall": stall})

    def end(self) -> list[float]:
        """Return when each request since `begin` was done, in seconds after it."""
        done: list[float] = self._ask({"end": True})["done"]
        return done

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        pipe = _pipe(self._process.stdin)
        pipe.write(json.dumps(order) + "\n")
        pipe.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise RuntimeError("the back-end has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


class AsyncBackend(asyncio.Protocol):
    """An asyncio connection to the back-end."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._number = 0
        self._rest = b""

    @classmethod
    async def connect(cls, path: str) -> AsyncBackend:
        """Connect."""
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_unix_connection(cls, path)
        protocol._loop = loop
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Wake up those whose answers came."""
        data = self._rest + data
        whole = len(data) - len(data) % ANSWER.size
        for (number,) in ANSWER.iter_unpack(data[:whole]):
            future = self._waiting.pop(number, None)
            if future is not None and not future.done():
                future.set_result(None)
        self._rest = data[whole:]

    async def call(self, pool: int, site: int, seconds: float) -> None:
        """Hold a slot of `pool` for `seconds`, for `site`."""
        self._number += 1
        self._waiting[self._number] = future = self._loop.create_future()
        self._transport.write(REQUEST.pack(self._number, pool, site, round(seconds * 1e6)))
        await future

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    _loop: asyncio.AbstractEventLoop


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
