"""Who lets rows in, for the arm in full: the home's agent asks here for a row, and gets one when C are not exceeded.

A node opens all tasks of a workflow at once; how many of them are under way is up to the agent of the first step. A
message is a letter and a number: `e`, 0: let me in (the answer is the row's number); `d`, row: this row has done its
last hop.
"""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import Final, Self, cast

MESSAGE: Final = struct.Struct(">cI")
ENTER: Final = b"e"
DONE: Final = b"d"
_WAIT_S: Final = 30.0


class Admission:
    """Lets rows in, on a thread of its own, for as long as the block lasts."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "admission.sock")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="admission", daemon=True)
        self._waiting: deque[asyncio.WriteTransport] = deque()
        self.clients: set[asyncio.WriteTransport] = set()
        self._inside: set[int] = set()
        self._began = 0.0
        self._in_flight = self._count = self._next = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen()).result(_WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close()).result(_WAIT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_WAIT_S)
        self._loop.close()

    def begin(self, in_flight: int, count: int) -> None:
        """Let `count` rows in, so many at a time; forgets who waited."""

        async def begin() -> None:
            self._begin(in_flight, count)

        self._call(begin()).result(_WAIT_S)

    def widen(self, in_flight: int) -> None:
        """Let more in at a time, those who wait first."""

        async def widen() -> None:
            self._in_flight = in_flight
            self._let_in()

        self._call(widen()).result(_WAIT_S)

    @property
    def began(self) -> float:
        """When the first row was let in, in seconds since 1970; 0: none was."""
        return self._began

    def enter(self, client: asyncio.WriteTransport) -> None:
        """Let somebody in, now or in its turn."""
        self._waiting.append(client)
        self._let_in()

    def done(self, row: int) -> None:
        """Note that a row has done its last hop."""
        self._inside.discard(row)
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and len(self._inside) < self._in_flight and self._next < self._count:
            self._began = self._began or time.time()
            self._inside.add(self._next)
            self._waiting.popleft().write(MESSAGE.pack(ENTER, self._next))
            self._next += 1

    def _begin(self, in_flight: int, count: int) -> None:
        self._in_flight, self._count, self._next, self._began = in_flight, count, 0, 0.0
        self._inside.clear()
        self._waiting.clear()

    def _call(self, what: object) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(what, self._loop)  # type: ignore[arg-type]

    async def _listen(self) -> None:
        self._server = await self._loop.create_unix_server(lambda: _Client(self), self.path)

    async def _close(self) -> None:
        self._server.close()
        for client in list(self.clients):
            client.abort()
        await asyncio.sleep(0)  # the loop closes their sockets in its next round


class _Client(asyncio.Protocol):
    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._admission.clients.add(self._transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._admission.clients.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        whole = len(data) - len(data) % MESSAGE.size
        for what, row in MESSAGE.iter_unpack(data[:whole]):
            if what == ENTER:
                self._admission.enter(self._transport)
            else:
                self._admission.done(row)
        self._rest = data[whole:]


class Door(asyncio.Protocol):
    """An agent's connection to the admission."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[int]] = deque()
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Hand rows out."""
        data = self._rest + data
        whole = len(data) - len(data) % MESSAGE.size
        for _, row in MESSAGE.iter_unpack(data[:whole]):
            while self._waiting:
                future = self._waiting.popleft()
                if not future.done():
                    future.set_result(row)
                    break
        self._rest = data[whole:]

    async def enter(self) -> int:
        """Wait for a row."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._transport.write(MESSAGE.pack(ENTER, 0))
        return await future

    def done(self, row: int) -> None:
        """Say that a row has done its last hop."""
        self._transport.write(MESSAGE.pack(DONE, row))

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()
