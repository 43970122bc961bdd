"""Streams over one secured connection: Yamux (`transport.yamux`) with trio's tasks around it."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from comity.errors import ComityError, LinkClosed
from comity_node.transport.yamux import (
    DataReceived,
    Event,
    MuxLimits,
    PeerLeaves,
    StreamEnded,
    StreamOpened,
    StreamReset,
    WindowGrew,
    Yamux,
)

#: Bytes that wait to be written to one connection before senders wait too.
_SEND_BUFFER = 256 * 1024
#: The largest piece of one stream before others get their turn.
_MAX_PIECE = 64 * 1024
#: A peer that takes nothing for so long is gone.
_WRITE_TIMEOUT_S = 30.0
_CLOSE_TIMEOUT_S = 1.0


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


class MuxedStream:
    """A `ByteStream` of a `MuxedConnection`."""

    def __init__(self, connection: MuxedConnection, stream_id: int) -> None:
        self._connection = connection
        self._id = stream_id
        self._chunks: deque[bytes] = deque()
        self._eof = False
        self._ended = False
        self._broken = ""
        self._readable = trio.lowlevel.ParkingLot()
        self._writable = trio.lowlevel.ParkingLot()

    @property
    def remote_peer(self) -> str:
        """The PeerId of the other end."""
        return self._connection.remote_peer

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """See `ByteStream.receive`."""
        await trio.lowlevel.checkpoint()
        while not self._chunks:
            if self._eof:
                return b""
            if self._broken:
                raise LinkClosed(self._broken)
            await self._readable.park()
        data = self._chunks.popleft()
        if len(data) > max_bytes:
            self._chunks.appendleft(data[max_bytes:])
            data = data[:max_bytes]
        self._connection.consumed(self._id, len(data))
        return data

    async def send(self, data: bytes) -> None:
        """See `ByteStream.send`."""
        position = 0
        while position < len(data):
            if self._broken or self._ended:
                raise LinkClosed(self._broken or "this side of the stream is ended")
            room = min(self._connection.send_room(self._id), _MAX_PIECE)
            if room > 0:
                piece = data if position == 0 and room >= len(data) else data[position : position + room]
                self._connection.send(self._id, piece)
                position += len(piece)
            elif self._connection.is_full:
                await self._connection.room.park()
            else:
                await self._writable.park()
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        """See `ByteStream.send_eof`."""
        await trio.lowlevel.checkpoint()
        self._ended = True
        self._connection.end(self._id)

    async def aclose(self) -> None:
        """See `ByteStream.aclose`."""
        self._ended = True
        self._connection.close_stream(self._id)
        self._drop("the stream is closed")
        await trio.lowlevel.checkpoint()

    def reset(self) -> None:
        """See `ByteStream.reset`."""
        self._connection.reset(self._id)
        self._drop("the stream was reset")

    # From the connection.

    def on_data(self, data: bytes) -> None:
        """Bytes came."""
        self._chunks.append(data)
        self._readable.unpark_all()

    def on_end(self) -> None:
        """The peer sends no more."""
        self._eof = True
        self._readable.unpark_all()

    def on_window(self) -> None:
        """The peer takes more."""
        self._writable.unpark_all()

    def on_break(self, reason: str) -> None:
        """The stream or its connection is gone; what has come can still be read."""
        self._broken = self._broken or reason
        self._readable.unpark_all()
        self._writable.unpark_all()
        self._connection.room.unpark_all()

    def _drop(self, reason: str) -> None:
        self._chunks.clear()
        self._eof = False
        self.on_break(reason)


class MuxedConnection:
    """A secured connection that carries streams. `run` is its life."""

    def __init__(
        self,
        channel: SecureChannel,
        remote_peer: str,
        *,
        initiator: bool,
        limits: MuxLimits,
    ) -> None:
        """Make a connection.

        Args:
            channel: the connection; it is closed when `run` ends.
            remote_peer: the PeerId that the channel has proved.
            initiator: whether we dialled.
            limits: what the peer may have open and unread.
        """
        self.remote_peer = remote_peer
        #: Senders that wait until less is waiting to be written.
        self.room = trio.lowlevel.ParkingLot()
        #: Set when `run` has ended.
        self.closed = trio.Event()
        self._channel = channel
        self._mux = Yamux(initiator=initiator, limits=limits)
        self._on_stream: Callable[[MuxedStream], None] = MuxedStream.reset
        self._streams: dict[int, MuxedStream] = {}
        self._work = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope()
        self._closing = False
        self._reason = ""

    @property
    def is_usable(self) -> bool:
        """Whether new streams can be opened."""
        return not (self._closing or self._reason)

    @property
    def is_full(self) -> bool:
        """Whether so much waits to be written that senders wait too."""
        return self._mux.pending_bytes >= _SEND_BUFFER

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    async def run(self, on_stream: Callable[[MuxedStream], None]) -> None:
        """Carry streams until either side closes or the connection breaks.

        Args:
            on_stream: called, without waiting, with each stream that the peer opens.
        """
        self._on_stream = on_stream
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._guarded, self._read_loop)
                    nursery.start_soon(self._guarded, self._write_loop)
        finally:
            self._reason = self._reason or "the connection was closed"
            for stream in list(self._streams.values()):
                stream.on_break(self._reason)
            self._streams.clear()
            self.room.unpark_all()
            with trio.CancelScope(shield=True), trio.move_on_after(_CLOSE_TIMEOUT_S):
                await self._channel.close()
            self.closed.set()

    def open(self) -> MuxedStream:
        """Open a stream.

        Raises:
            Busy: as many as the limit allows are open.
            LinkClosed: the connection is closed.
        """
        if not self.is_usable:
            raise LinkClosed(self._reason or "the connection is closing")
        stream_id = self._mux.open()
        self._wake()
        return self._add(stream_id)

    def set_limits(self, limits: MuxLimits) -> None:
        """Give the peer more streams and wider windows."""
        self._mux.set_limits(limits)
        self._wake()

    def close(self, reason: str) -> None:
        """Send what waits, for a second at most, and close."""
        if not self._closing:
            self._closing = True
            self._reason = self._reason or reason
            self._mux.go_away()
            self._wake()
            self._scope.deadline = trio.current_time() + _CLOSE_TIMEOUT_S

    # From the streams.

    def send_room(self, stream_id: int) -> int:
        """How many bytes a stream may send now."""
        if self.is_full or stream_id not in self._streams:
            return 0
        return self._mux.send_window(stream_id)

    def send(self, stream_id: int, data: bytes) -> None:
        """Queue bytes of a stream."""
        self._mux.send(stream_id, data)
        self._wake()

    def consumed(self, stream_id: int, count: int) -> None:
        """Bytes of a stream have been read."""
        self._mux.consumed(stream_id, count)
        self._wake()

    def end(self, stream_id: int) -> None:
        """A stream sends no more."""
        self._mux.end(stream_id)
        self._wake()

    def close_stream(self, stream_id: int) -> None:
        """A stream sends no more and is not read any more."""
        if self._streams.pop(stream_id, None) is not None:
            self._mux.close(stream_id)
            self._wake()

    def reset(self, stream_id: int) -> None:
        """A stream is torn down."""
        if self._streams.pop(stream_id, None) is not None:
            self._mux.reset(stream_id)
            self._wake()

    # The tasks.

    async def _guarded(self, loop: Callable[[], Awaitable[None]]) -> None:
        try:
            await loop()
        except ComityError as error:
            self._reason = self._reason or str(error)
        self._scope.cancel()

    async def _read_loop(self) -> None:
        while True:
            data = await self._channel.read()
            if not data:
                raise LinkClosed("the peer closed the connection")
            for event in self._mux.receive(data):
                self._on_event(event)
            self._wake()

    async def _write_loop(self) -> None:
        while True:
            while not self._mux.pending_bytes:
                if self._closing:
                    return
                await self._work.park()
            data = self._mux.data_to_send()
            self.room.unpark_all()
            with trio.move_on_after(_WRITE_TIMEOUT_S) as scope:
                await self._channel.write(data)
            if scope.cancelled_caught:
                raise LinkClosed(f"the peer has read nothing for {_WRITE_TIMEOUT_S:.0f} s")

    def _on_event(self, event: Event) -> None:
        match event:
            case StreamOpened(stream_id):
                self._on_stream(self._add(stream_id))
            case PeerLeaves():
                raise LinkClosed("the peer closed the connection")
            case DataReceived(stream_id, data):
                if stream := self._streams.get(stream_id):
                    stream.on_data(data)
            case WindowGrew(stream_id):
                if stream := self._streams.get(stream_id):
                    stream.on_window()
            case StreamEnded(stream_id):
                if stream := self._streams.get(stream_id):
                    stream.on_end()
            case StreamReset(stream_id):
                if stream := self._streams.pop(stream_id, None):
                    stream.on_break("the peer reset the stream")

    def _add(self, stream_id: int) -> MuxedStream:
        stream = MuxedStream(self, stream_id)
        self._streams[stream_id] = stream
        return stream

    def _wake(self) -> None:
        if self._mux.pending_bytes or self._closing:
            self._work.unpark_all()
