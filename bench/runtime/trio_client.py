"""The back-end's client and the clerk of a hop's cost, on trio: `client.AsyncBackend` and `central.Clerk` once more."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from bench.runtime.backend import ANSWER, REQUEST

_READ: Final = 65_536
_libc: Final = ctypes.CDLL(None, use_errno=True)
#: timerfd_settime(2): the interval and the first time, each in seconds and nanoseconds.
_TIMER: Final = struct.Struct("@llll")


class TrioBackend:
    """A connection to the back-end; `open_backend` makes it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._waiting: dict[int, trio.Event] = {}
        self._number = 0

    async def call(self, pool: int, site: int, seconds: float) -> None:
        """Hold a slot of `pool` for `seconds`, for `site`."""
        self._number += 1
        number = self._number
        self._waiting[number] = event = trio.Event()
        request = REQUEST.pack(number, pool, site, round(seconds * 1e6))
        if self._connection.send(request) != len(request):  # never: all requests under way fit into its buffer
            raise RuntimeError("the back-end's socket is full")
        try:
            await event.wait()
        finally:
            self._waiting.pop(number, None)

    async def read(self) -> None:
        """Wake up those whose answers came, one after the other, until cancelled."""
        rest = b""
        while True:
            await trio.lowlevel.wait_readable(self._connection.fileno())
            data = self._connection.recv(_READ)
            if not data:
                raise RuntimeError("the back-end has ended")
            data = rest + data
            whole = len(data) - len(data) % ANSWER.size
            for (number,) in ANSWER.iter_unpack(data[:whole]):
                if (event := self._waiting.get(number)) is not None:
                    event.set()
                    await trio.lowlevel.checkpoint()  # what comes of one goes on before the next is handed out
            rest = data[whole:]


@asynccontextmanager
async def open_backend(path: str) -> AsyncIterator[TrioBackend]:
    """Connect to the back-end for as long as the block lasts."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
        connection.setblocking(False)
        async with trio.open_nursery() as nursery:
            backend = TrioBackend(connection)
            nursery.start_soon(backend.read)
            yield backend
            nursery.cancel_scope.cancel()
    finally:
        connection.close()


class TrioClerk:
    """Whoever decides on hops: each costs the same, one after the other, and the next one waits."""

    def __init__(self, cost_s: float) -> None:
        self._cost_s = cost_s
        self._free_at = 0.0

    async def decide(self) -> None:
        """Wait until a hop has been decided on."""
        if self._cost_s:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + self._cost_s
            await _sleep(self._free_at - now)


async def _sleep(seconds: float) -> None:
    """Sleep as precisely as the loop of the other arms: trio's own time-outs are rounded up to milliseconds (epoll).

    Linux alone has timerfd_create(2); `os` has it from Python 3.13 on.

    Raises:
        OSError: the system has no timer to spare.
    """
    timer = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    if timer < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create failed")
    try:
        whole, nanos = divmod(max(1, round(seconds * 1e9)), 1_000_000_000)
        if _libc.timerfd_settime(timer, 0, _TIMER.pack(0, 0, whole, nanos), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")
        await trio.lowlevel.wait_readable(timer)
    finally:
        trio.lowlevel.notify_closing(timer)
        os.close(timer)
