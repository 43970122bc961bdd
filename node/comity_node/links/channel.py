"""A session (`protocol.session`) on a byte stream, with bounded buffers and back-pressure."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import trio

from comity.errors import ComityError, LinkClosed
from comity_node.links.state import Counters
from comity_node.protocol.session import Session
from comity_node.protocol.session_events import Event
from comity_node.transport.base import ByteStream, SendsAtOnce

_READ_BYTES = 128 * 1024
_FAREWELL_S = 1.0
#: What is handed on without a switch of tasks, at most; what is more goes better in one piece.
_AT_ONCE = 32 * 1024

Task = Callable[[], Awaitable[None]]


class Channel:
    """First a dialogue, frame by frame (`next_event`); then `run`, which reads and writes by itself."""

    def __init__(self, stream: ByteStream, session: Session, counters: Counters, *, send_buffer: int) -> None:
        self.session = session
        #: Called when what waited to be sent has become less.
        self.on_room: Callable[[], None] = _nothing
        self._stream = stream
        self._counters = counters
        self._send_buffer = send_buffer
        self._events: deque[Event] = deque()
        #: The task that writes, while it has nothing to write.
        self._idle_writer: trio.lowlevel.Task | None = None
        self._room = trio.lowlevel.ParkingLot()
        self._closed = ""
        self._in_write = False
        self._counted = (0, 0)
        #: What the stream did not take at once.
        self._left_over = b""
        self._hand_on = stream.send_nowait if isinstance(stream, SendsAtOnce) else None

    @property
    def remote_peer(self) -> str:
        """The PeerId that the transport has proved."""
        return self._stream.remote_peer

    @property
    def stream(self) -> ByteStream:
        """The stream below, for a tunnel that has become raw bytes."""
        return self._stream

    @property
    def has_room(self) -> bool:
        """Whether more may be sent: it is open, and not too much waits."""
        return self.session.pending_bytes <= self._send_buffer and not self._closed

    def count_with(self, counters: Counters) -> None:
        """Count on these from here on, what was counted so far included."""
        counters.add(self._counters)
        self._counters = counters

    async def next_event(self) -> Event:
        """Return what the peer says next.

        Raises:
            LinkClosed: the stream broke or ended.
            ProtocolError: the peer broke the protocol.
        """
        while not self._events:
            self._events.extend(await self._read())
        return self._events.popleft()

    async def flush(self) -> None:
        """Send what the session has to say, and wait until it is taken."""
        while data := self._take():
            await self._stream.send(data)
            self._counters.bytes_sent += len(data)

    def wake(self) -> None:
        """The session has something to send."""
        if (task := self._idle_writer) is not None:
            self._idle_writer = None
            trio.lowlevel.reschedule(task)

    def send_now(self) -> None:
        """The session has something to send, and nothing follows soon: hand it on at once, if the stream takes it."""
        session = self.session
        if self._idle_writer is None or self._hand_on is None or session.pending_bytes > _AT_ONCE:
            self.wake()
            return
        data = session.data_to_send()
        if self._hand_on(data):
            self._counters.bytes_sent += len(data)
        else:
            self._left_over = data
            self.wake()

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
        while (self.session.pending_bytes or self._left_over or self._in_write) and not self._closed:
            await self._room.park()

    def close(self, reason: str) -> None:
        """End `run`."""
        self._closed = self._closed or reason
        self.wake()
        self._room.unpark_all()

    async def run(self, on_events: Callable[[list[Event]], None], *beside: Task, holds_back: bool = True) -> None:
        """Read, write and do what is `beside` until one of them ends; always raises why.

        Args:
            on_events: told what came, in order, without waiting.
            beside: tasks that live as long as the channel.
            holds_back: whether nothing is read while too much waits to be sent. So it must be where what is read has
                answers, and must not be where answers are read: two ends that both hold back wait for each other.

        Raises:
            ComityError: whatever ended it; LinkClosed for `close` and for the end of the stream.
        """
        failure: ComityError | None = None

        async def guarded(task: Task) -> None:
            nonlocal failure
            try:
                await task()
            except ComityError as error:
                failure = failure or error
            nursery.cancel_scope.cancel()

        async def read() -> None:
            on_events(list(self._events))
            self._events.clear()
            while True:
                if self.session.pending_bytes:
                    self.wake()
                    if holds_back and not self.has_room:
                        await self.wait_room()
                on_events(await self._read())

        try:
            async with trio.open_nursery() as nursery:
                for task in (read, self._write, *beside):
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

    async def _read(self) -> list[Event]:
        data = await self._stream.receive(_READ_BYTES)
        if not data:
            self.session.receive_eof()
            raise LinkClosed("the peer closed the link")
        self._counters.bytes_received += len(data)
        try:
            return self.session.receive(data)
        finally:
            self._count_frames()

    def _take(self) -> bytes:
        """What is to be sent next; b"" if there is nothing."""
        data, self._left_over = self._left_over, b""
        return data or self.session.data_to_send()

    def _count_frames(self) -> None:
        session, counters = self.session, self._counters
        sent, received = self._counted
        self._counted = session.frames_sent, session.frames_received
        counters.frames_sent += session.frames_sent - sent
        counters.frames_received += session.frames_received - received

    async def _write(self) -> None:
        task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._idle_writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            while not (self.session.pending_bytes or self._left_over):
                if self._closed:
                    return
                self._idle_writer = task
                await trio.lowlevel.wait_task_rescheduled(abort)
            data = self._take()
            self._in_write = True
            await self._stream.send(data)
            self._in_write = False
            self._counters.bytes_sent += len(data)
            self._count_frames()
            if self._room:
                self._room.unpark_all()
            self.on_room()


def _nothing() -> None:
    """Nobody waits."""
