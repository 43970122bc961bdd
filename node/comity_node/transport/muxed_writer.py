"""The side of a `MuxedConnection` that writes: batches of its `Yamux`, at once where it can, else by a task."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Protocol, runtime_checkable

import trio

from comity.errors import LinkClosed
from comity_node.transport.scheduler import BatchSize
from comity_node.transport.yamux import Yamux

#: A peer that takes nothing for so long is gone.
_TIMEOUT_S: Final = 30.0


class SecureChannel(Protocol):
    """An encrypted connection whose other end has proved its key."""

    async def read(self) -> bytes:
        """Return the next bytes; b"" when the peer has closed. Raises LinkClosed or ProtocolError."""
        ...

    async def write(self, data: bytes) -> None:
        """Send all of `data`. Raises LinkClosed."""
        ...

    async def close(self) -> None:
        """Close the connection."""
        ...


@runtime_checkable
class WritesAtOnce(Protocol):
    """What a `SecureChannel` may be, besides: one that writes without waiting."""

    def write_some(self, data: bytes) -> bytes:
        """Send of `data` what fits at once; the rest is returned, encrypted, for `write_rest`. Raises LinkClosed."""
        ...

    async def write_rest(self, rest: bytes) -> None:
        """Send what `write_some` has left, before anything else is written. Raises LinkClosed."""
        ...


class Writer:
    """Writes what a `Yamux` has to send, in the order and the portions that it gives."""

    def __init__(self, channel: SecureChannel, mux: Yamux, on_drained: Callable[[list[int]], None]) -> None:
        """Make a writer.

        Args:
            channel: where to.
            mux: what from.
            on_drained: told, without waiting, of which streams little waits any more.
        """
        #: How much is written at once.
        self.batch = BatchSize()
        self._channel = channel
        self._at_once = channel if isinstance(channel, WritesAtOnce) else None
        self._mux = mux
        self._on_drained = on_drained
        #: What is encrypted already and the line has not taken yet.
        self._rest = b""
        self._work = trio.lowlevel.ParkingLot()
        self._is_idle = False
        self._closing = False

    def wake(self) -> None:
        """There may be something to send."""
        if self._is_idle and self._mux.has_data_to_send:
            self._is_idle = False
            self._work.unpark_all()

    def flush(self) -> None:
        """There is something to send, and nothing more comes soon: send it at once, if the line takes it.

        Raises:
            LinkClosed: the connection broke.
        """
        if self._at_once is None or not (self._is_idle and self._mux.has_data_to_send):
            self.wake()
            return
        self._rest = self._at_once.write_some(self._next_batch())
        if self._rest or self._mux.has_data_to_send:
            self._is_idle = False
            self._work.unpark_all()

    def close(self) -> None:
        """Let `run` end when nothing waits any more and the peer has been told that we leave."""
        self._closing = True
        self._work.unpark_all()

    async def run(self) -> None:
        """Write until told to close.

        Raises:
            LinkClosed: the connection broke, or the peer reads nothing.
        """
        with trio.CancelScope() as scope:
            await self._run(scope)
        if scope.cancelled_caught:
            raise LinkClosed(f"the peer has read nothing for {_TIMEOUT_S:.0f} s")

    async def _run(self, scope: trio.CancelScope) -> None:
        mux = self._mux
        while True:
            while not (self._rest or mux.has_data_to_send):
                if self._closing and not mux.pending_bytes:
                    mux.go_away()
                    if not mux.has_data_to_send:
                        return
                else:
                    self._is_idle = True
                    await self._work.park()
            if self._at_once is None:
                await self._write(scope)
            else:
                await self._write_some(self._at_once, scope)

    async def _write(self, scope: trio.CancelScope) -> None:
        """Write a batch; the deadline of `scope` is how long that may take."""
        data = self._next_batch()
        began = trio.current_time()
        scope.deadline = began + _TIMEOUT_S
        await self._channel.write(data)
        scope.deadline = math.inf
        self.batch.written(len(data), trio.current_time() - began)

    async def _write_some(self, channel: WritesAtOnce, scope: trio.CancelScope) -> None:
        """Write a batch, or what is left of one; lets others run when it has to wait, or was large."""
        size = len(self._rest)
        if not size:
            data = self._next_batch()
            size = len(data)
            self._rest = channel.write_some(data)
            del data  # so that a batch that waits is held once
        if self._rest:
            began = trio.current_time()
            scope.deadline = began + _TIMEOUT_S
            await channel.write_rest(self._rest)
            scope.deadline = math.inf
            self._rest = b""
            self.batch.written(size, trio.current_time() - began)
        else:
            self.batch.written(size, 0.0)
            if size >= BatchSize.SMALLEST // 2:
                await trio.lowlevel.checkpoint()

    def _next_batch(self) -> bytes:
        data = self._mux.data_to_send(self.batch.bytes)
        if self._mux.drained:
            self._on_drained(self._mux.drained)
        return data
