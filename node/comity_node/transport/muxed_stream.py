"""One stream of a `MuxedConnection`: what has come waits here, what is to be sent waits in its `Yamux`."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from comity.errors import LinkClosed
from comity_node.transport.base import Priority

if TYPE_CHECKING:
    from comity_node.transport.muxed import MuxedConnection

#: Pieces that come smaller than this are joined, so that a window of single bytes costs no more than its bytes.
_SMALL: Final = 512
_JOINED: Final = 16 * 1024
#: Pieces of this size are handed out as they are: to join them costs more than a call more.
_LARGE: Final = 32 * 1024
#: So many calls that need not wait, one after the other, before others get their turn all the same.
_CALLS_A_TURN: Final = 16


class MuxedStream:
    """A `ByteStream` of a `MuxedConnection`."""

    def __init__(self, connection: MuxedConnection, stream_id: int) -> None:
        """Make the stream of an id that the connection's `Yamux` has."""
        self._connection = connection
        self._mux = connection.mux
        self._id = stream_id
        self._chunks: deque[bytes | bytearray] = deque()
        #: What has been taken of the first chunk.
        self._taken = 0
        self._eof = False
        self._ended = False
        self._broken = ""
        self._closed = False
        self._calls = 0
        self._readable = trio.lowlevel.ParkingLot()
        self._writable = trio.lowlevel.ParkingLot()

    @property
    def remote_peer(self) -> str:
        """The PeerId of the other end."""
        return self._connection.remote_peer

    def set_priority(self, priority: Priority) -> None:
        """See `ByteStream.set_priority`; what waits already is meant, too."""
        self._mux.set_priority(self._id, priority)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """See `ByteStream.receive`: all that is there, up to `max_bytes`."""
        await self._checkpoint()
        while not self._chunks:
            if self._eof:
                return b""
            if self._broken:
                raise LinkClosed(self._broken)
            await self._readable.park()
        data = self._take(max_bytes)
        self._mux.consumed(self._id, len(data))
        self._connection.wake()
        return data

    async def send(self, data: bytes) -> None:
        """See `ByteStream.send`: returns when at most `MuxLimits.send_buffer` bytes of the stream still wait.

        While less waits on the whole connection than goes at once, more may.

        A call that is cancelled while it waits has sent a part: what is left is dropped, and the stream can only be
        reset, which `aclose` and `send_eof` do then, so that the peer does not take the part for the whole.
        """
        await self._checkpoint()
        if self._broken or self._ended:
            raise LinkClosed(self._broken or "this side of the stream is ended")
        self._mux.send(self._id, data if type(data) is bytes else bytes(data))
        self._connection.wake()
        if not self._connection.may_send_on(self._id):
            await self._until_sent()

    def send_nowait(self, data: bytes) -> bool:
        """See `SendsAtOnce.send_nowait`: there is room for as much as `MuxLimits.send_buffer` and what waits leave."""
        if self._broken or self._ended or self._mux.unsent(self._id) + len(data) > self._connection.send_buffer:
            return False
        self._mux.send(self._id, data)
        self._connection.flush()
        return True

    async def send_eof(self) -> None:
        """See `ByteStream.send_eof`."""
        await trio.lowlevel.checkpoint()
        self._ended = True
        self._mux.end(self._id)
        self._connection.wake()

    async def aclose(self) -> None:
        """See `ByteStream.aclose`."""
        if not self._closed:
            self._mux.close(self._id)
            self._let_go("the stream is closed")
        await trio.lowlevel.checkpoint()

    def reset(self) -> None:
        """See `ByteStream.reset`."""
        if not self._closed:
            self._mux.reset(self._id)
            self._let_go("the stream was reset")

    # From the connection.

    def on_data(self, data: bytes) -> None:
        """Bytes came."""
        chunks = self._chunks
        if len(data) >= _SMALL or not chunks:
            chunks.append(data)
        elif len(last := chunks[-1]) + len(data) > _JOINED:
            chunks.append(bytearray(data))
        elif isinstance(last, bytearray):
            last += data
        elif len(last) < _SMALL:
            chunks[-1] = bytearray(last) + data
        else:
            chunks.append(bytearray(data))
        self._readable.unpark_all()

    def on_end(self) -> None:
        """The peer sends no more."""
        self._eof = True
        self._readable.unpark_all()

    def on_room(self) -> None:
        """Less waits to be sent."""
        self._writable.unpark_all()

    def on_break(self, reason: str) -> None:
        """The stream or its connection is gone; what has come can still be read."""
        self._broken = self._broken or reason
        self._readable.unpark_all()
        self._writable.unpark_all()

    # Within.

    async def _checkpoint(self) -> None:
        """A checkpoint that lets others run only now and then: what is here, or fits, is no reason to wait.

        What the calls in between can do is bounded by the stream's window and its send buffer.
        """
        self._calls += 1
        if self._calls % _CALLS_A_TURN:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()

    async def _until_sent(self) -> None:
        try:
            while not (self._connection.may_send_on(self._id) or self._broken):
                await self._writable.park()
        except trio.Cancelled:
            self._ended = True
            self._mux.cut(self._id)
            raise
        if self._broken:
            raise LinkClosed(self._broken)

    def _take(self, max_bytes: int) -> bytes:
        chunks, start = self._chunks, self._taken
        first = chunks[0]
        if len(first) - start > max_bytes:
            self._taken = start + max_bytes
            return bytes(first[start : self._taken])
        chunks.popleft()
        self._taken = 0
        if start:
            first = first[start:]
        if not chunks or len(first) >= _LARGE or len(first) == max_bytes:
            return bytes(first)
        parts: list[bytes | bytearray] = [first]
        room = max_bytes - len(first)
        while chunks and len(chunks[0]) <= room:
            room -= len(chunks[0])
            parts.append(chunks.popleft())
        if chunks and room:
            parts.append(chunks[0][:room])
            self._taken = room
        return b"".join(parts)

    def _let_go(self, reason: str) -> None:
        self._closed = self._ended = True
        self._chunks.clear()
        self._taken = 0
        self._eof = False
        self.on_break(reason)
        self._connection.let_go(self._id)
