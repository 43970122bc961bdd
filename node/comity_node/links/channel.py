"""A session (`protocol.session`) on a byte stream, with bounded buffers and back-pressure."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import trio

from comity.errors import ComityError, LinkClosed
from comity_node.links.state import Counters
from comity_node.protocol.session import Session
from comity_node.protocol.session_events import Event
from comity_node.transport.base import ByteStream

_READ_BYTES = 128 * 1024
_FAREWELL_S = 1.0


class Channel:
    """First a dialogue, frame by frame (`next_event`); then `run`, which reads and writes by itself."""

    def __init__(self, stream: ByteStream, session: Session, counters: Counters, *, send_buffer: int) -> None:
        self.session = session
        self._stream = stream
        self._counters = counters
        self._send_buffer = send_buffer
        self._events: deque[Event] = deque()
        self._work = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._closed = ""
        self._in_write = False

    @property
    def remote_peer(self) -> str:
        """The PeerId that the transport has proved."""
        return self._stream.remote_peer

    @property
    def stream(self) -> ByteStream:
        """The stream below, for a tunnel that has become raw bytes."""
        return self._stream

    def count_with(self, counters: Counters) -> None:
        """Count on these from here on, what was counted so far included."""
        counters.bytes_sent += self._counters.bytes_sent
        counters.bytes_received += self._counters.bytes_received
        self._counters = counters

    async def next_event(self) -> Event:
        """Return what the peer says next.

        Raises:
            LinkClosed: the stream broke or ended.
            ProtocolError: the peer broke the protocol.
        """
        while not self._events:
            await self._read()
        return self._events.popleft()

    async def flush(self) -> None:
        """Send what the session has to say, and wait until it is taken."""
        if self.session.pending_bytes:
            data = self.session.data_to_send()
            await self._stream.send(data)
            self._counters.bytes_sent += len(data)

    def wake(self) -> None:
        """The session has something to send."""
        self._work.unpark_all()

    async def wait_room(self) -> None:
        """Wait while too much waits to be sent.

        Raises:
            LinkClosed: the channel is closed.
        """
        while self.session.pending_bytes > self._send_buffer and not self._closed:
            await self._room.park()
        if self._closed:
            raise LinkClosed(self._closed)

    async def wait_sent(self) -> None:
        """Wait until nothing waits to be sent, or the channel is closed."""
        while (self.session.pending_bytes or self._in_write) and not self._closed:
            await self._room.park()

    def close(self, reason: str) -> None:
        """End `run`."""
        self._closed = self._closed or reason
        self._work.unpark_all()
        self._room.unpark_all()

    async def run(self, on_event: Callable[[Event], None], beside: Callable[[], Awaitable[None]]) -> None:
        """Read, write and do `beside` until one of them ends; always raises why.

        Args:
            on_event: told each event, without waiting.
            beside: a task that lives as long as the channel.

        Raises:
            ComityError: whatever ended it; LinkClosed for `close` and for the end of the stream.
        """
        failure: ComityError | None = None

        async def guarded(task: Callable[[], Awaitable[None]]) -> None:
            nonlocal failure
            try:
                await task()
            except ComityError as error:
                failure = failure or error
            nursery.cancel_scope.cancel()

        async def read() -> None:
            while True:
                while self._events:
                    on_event(self._events.popleft())
                if self.session.pending_bytes:
                    self.wake()
                    await self.wait_room()
                await self._read()

        try:
            async with trio.open_nursery() as nursery:
                for task in (read, self._write, beside):
                    nursery.start_soon(guarded, task)
        finally:
            self.close(str(failure) if failure else "the link was closed")
        raise failure or LinkClosed(self._closed)

    async def say_goodbye(self) -> None:
        """Send what is left, for a second at most, and close the stream."""
        self.close("the link was closed")
        if self._in_write:  # cut off in the middle of a frame: nothing more can be said
            self._stream.reset()
            return
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _FAREWELL_S) as scope:
            try:
                await self.flush()
            except LinkClosed:
                pass  # nobody is left to tell
            await self._stream.aclose()
        if scope.cancelled_caught:
            self._stream.reset()

    async def _read(self) -> None:
        data = await self._stream.receive(_READ_BYTES)
        if not data:
            self.session.receive_eof()
            raise LinkClosed("the peer closed the link")
        self._counters.bytes_received += len(data)
        self._events.extend(self.session.receive(data))

    async def _write(self) -> None:
        while True:
            while not self.session.pending_bytes:
                if self._closed:
                    return
                await self._work.park()
            data = self.session.data_to_send()
            self._room.unpark_all()
            self._in_write = True
            await self._stream.send(data)
            self._in_write = False
            self._room.unpark_all()
            self._counters.bytes_sent += len(data)
