"""Yamux (https://github.com/hashicorp/yamux/blob/master/spec.md) with no I/O: bytes in, events out.

py-libp2p's own Yamux does not hold the limits that a node among strangers needs: it does not enforce its
receive window, resets a stream whose reader is slower than five seconds, can deadlock two-way streams and
loses a connection when a write is cancelled. This one speaks the same protocol and

- takes no byte beyond the window it has granted, and no stream beyond the limit;
- never waits: what is to be sent is queued, and `pending_bytes` says how much that is;
- delivers the body of a frame as it comes, so that it buffers at most a header.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import Final

from comity.errors import Busy, ProtocolError, UnexpectedMessage

PROTOCOL_ID: Final = "/yamux/1.0.0"
#: The window that both sides grant without saying so.
INITIAL_WINDOW: Final = 256 * 1024
_HEADER = struct.Struct(">BBHII")
_DATA, _WINDOW_UPDATE, _PING, _GO_AWAY = range(4)
_SYN, _ACK, _FIN, _RST = 1, 2, 4, 8
_MAX_SEND_WINDOW: Final = 16 * 1024 * 1024
#: Streams that we have ended and the peer has not; over that the oldest is reset.
_MAX_LINGERING: Final = 16


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a stream."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Bytes of a stream. Call `consumed` when they have been read."""

    stream_id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class WindowGrew:
    """The peer takes more bytes of this stream."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The peer sends no more on this stream."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The peer tore the stream down."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class PeerLeaves:
    """The peer takes no more streams and will close the connection."""

    code: int


Event = StreamOpened | DataReceived | WindowGrew | StreamEnded | StreamReset | PeerLeaves


@dataclass(frozen=True, slots=True)
class MuxLimits:
    """What one connection takes from a peer.

    Attributes:
        max_streams: streams that are open in each direction.
        window: bytes of one stream that may wait unread, at least `INITIAL_WINDOW`.
        max_pending: bytes of answers (acknowledgements, resets) that may wait while the peer does not read.
    """

    max_streams: int = 64
    window: int = 512 * 1024
    max_pending: int = 1024 * 1024


@dataclass(slots=True)
class _Stream:
    inbound: bool
    window: int
    send_window: int = INITIAL_WINDOW
    #: What the peer may still send, and what was read but not yet granted again.
    recv_window: int = 0
    consumed: int = 0
    ended_here: bool = False
    ended_there: bool = False
    #: Nobody reads any more: what comes is dropped.
    lingering: bool = False


class Yamux:
    """The state of one multiplexed connection."""

    def __init__(self, *, initiator: bool, limits: MuxLimits) -> None:
        self._limits = limits
        self._initiator = initiator
        self._next_id = 1 if initiator else 2
        self._streams: dict[int, _Stream] = {}
        self._counts = {True: 0, False: 0}
        self._lingering: deque[int] = deque()
        self._header = bytearray()
        self._body_stream = 0
        self._body_left = 0
        self._body_flags = 0
        self._out: deque[bytes] = deque()
        #: Bytes that wait in `data_to_send`.
        self.pending_bytes = 0

    # Out.

    def open(self) -> int:
        """Open a stream and return its id.

        Raises:
            Busy: `max_streams` of ours are open.
        """
        if self._counts[False] >= self._limits.max_streams:
            raise Busy(f"{self._counts[False]} streams are open on this connection", retry_after_ms=100)
        stream_id = self._next_id
        self._next_id += 2
        self._add(stream_id, inbound=False)
        self._queue(_WINDOW_UPDATE, _SYN, stream_id, self._limits.window - INITIAL_WINDOW)
        return stream_id

    def send_window(self, stream_id: int) -> int:
        """How many bytes the peer takes on this stream now."""
        return self._streams[stream_id].send_window

    def send(self, stream_id: int, data: bytes) -> None:
        """Queue bytes, at most `send_window` of them."""
        stream = self._streams[stream_id]
        if len(data) > stream.send_window or stream.ended_here:
            raise UnexpectedMessage("more bytes than the peer's window takes, or bytes after the end")
        stream.send_window -= len(data)
        self._queue(_DATA, 0, stream_id, len(data), data)

    def consumed(self, stream_id: int, count: int) -> None:
        """Bytes of this stream have been read: grant the peer as many again, half a window at a time."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.ended_there or stream.lingering:
            return
        stream.consumed += count
        if stream.consumed >= stream.window // 2:
            self._queue(_WINDOW_UPDATE, 0, stream_id, stream.consumed)
            stream.recv_window += stream.consumed
            stream.consumed = 0

    def end(self, stream_id: int) -> None:
        """Send no more on this stream."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.ended_here:
            return
        stream.ended_here = True
        self._queue(_WINDOW_UPDATE, _FIN, stream_id, 0)
        self._forget_if_done(stream_id, stream)

    def close(self, stream_id: int) -> None:
        """Send no more on this stream and drop what still comes."""
        self.end(stream_id)
        stream = self._streams.get(stream_id)
        if stream is None or stream.lingering:
            return
        stream.lingering = True
        self._lingering.append(stream_id)
        while len(self._lingering) > _MAX_LINGERING:
            self.reset(self._lingering[0])

    def reset(self, stream_id: int) -> None:
        """Tear a stream down."""
        if stream_id in self._streams:
            self._queue(_WINDOW_UPDATE, _RST, stream_id, 0)
            self._forget(stream_id)

    def set_limits(self, limits: MuxLimits) -> None:
        """Give the peer more; the windows of open streams grow too."""
        self._limits = limits
        for stream_id, stream in self._streams.items():
            extra = limits.window - stream.window
            if extra > 0 and not stream.ended_there:
                stream.window += extra
                stream.recv_window += extra
                self._queue(_WINDOW_UPDATE, 0, stream_id, extra)

    def go_away(self) -> None:
        """Say that the connection is about to be closed."""
        self._queue(_GO_AWAY, 0, 0, 0)

    def data_to_send(self) -> bytes:
        """Return and forget what is to be sent."""
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        self.pending_bytes = 0
        return data

    # In.

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes of the connection and return what they mean.

        Raises:
            ProtocolError: the peer broke the protocol or a limit; close the connection.
        """
        events: list[Event] = []
        position = 0
        while position < len(data):
            if self._body_left:
                taken = min(self._body_left, len(data) - position)
                self._on_body(data[position : position + taken], events)
                position += taken
                continue
            taken = min(_HEADER.size - len(self._header), len(data) - position)
            self._header += data[position : position + taken]
            position += taken
            if len(self._header) == _HEADER.size:
                version, kind, flags, stream_id, length = _HEADER.unpack(self._header)
                self._header.clear()
                if version != 0:
                    raise ProtocolError(f"Yamux version {version}")
                self._on_header(kind, flags, stream_id, length, events)
        if self.pending_bytes > self._limits.max_pending + INITIAL_WINDOW:
            raise ProtocolError("the peer does not read the answers that it asks for")
        return events

    def _on_header(self, kind: int, flags: int, stream_id: int, length: int, events: list[Event]) -> None:
        if kind == _PING:
            if flags & _SYN:
                self._queue(_PING, _ACK, 0, length)
        elif kind == _GO_AWAY:
            events.append(PeerLeaves(length))
        elif kind in (_DATA, _WINDOW_UPDATE):
            self._on_stream_header(kind, flags, stream_id, length, events)
        else:
            raise ProtocolError(f"Yamux frame of type {kind}")

    def _on_stream_header(self, kind: int, flags: int, stream_id: int, length: int, events: list[Event]) -> None:
        if flags & _SYN:
            self._on_syn(stream_id, events)
        stream = self._streams.get(stream_id)
        if kind == _DATA and length:
            if stream is not None:
                if stream.ended_there:
                    raise ProtocolError(f"data after the end of stream {stream_id}")
                if length > stream.recv_window:
                    raise ProtocolError(f"stream {stream_id} is {length - stream.recv_window} bytes over its window")
                stream.recv_window -= length
            self._body_stream, self._body_left, self._body_flags = stream_id, length, flags
            return
        if kind == _WINDOW_UPDATE and length and stream is not None:
            stream.send_window = min(stream.send_window + length, _MAX_SEND_WINDOW)
            events.append(WindowGrew(stream_id))
        self._on_end_flags(flags, stream_id, events)

    def _on_syn(self, stream_id: int, events: list[Event]) -> None:
        if stream_id == 0 or (stream_id % 2 == 1) == self._initiator or stream_id in self._streams:
            raise ProtocolError(f"the peer cannot open stream {stream_id}")
        if self._counts[True] >= self._limits.max_streams:
            self._queue(_WINDOW_UPDATE, _RST, stream_id, 0)
            return
        self._add(stream_id, inbound=True)
        self._queue(_WINDOW_UPDATE, _ACK, stream_id, self._limits.window - INITIAL_WINDOW)
        events.append(StreamOpened(stream_id))

    def _on_body(self, data: bytes, events: list[Event]) -> None:
        self._body_left -= len(data)
        stream = self._streams.get(self._body_stream)
        if stream is not None and not stream.lingering:
            events.append(DataReceived(self._body_stream, data))
        if not self._body_left:
            self._on_end_flags(self._body_flags, self._body_stream, events)

    def _on_end_flags(self, flags: int, stream_id: int, events: list[Event]) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if flags & _RST:
            self._forget(stream_id)
            events.append(StreamReset(stream_id))
        elif flags & _FIN and not stream.ended_there:
            stream.ended_there = True
            events.append(StreamEnded(stream_id))
            self._forget_if_done(stream_id, stream)

    def _add(self, stream_id: int, *, inbound: bool) -> None:
        self._streams[stream_id] = _Stream(inbound, self._limits.window, recv_window=self._limits.window)
        self._counts[inbound] += 1

    def _forget_if_done(self, stream_id: int, stream: _Stream) -> None:
        if stream.ended_here and stream.ended_there:
            self._forget(stream_id)

    def _forget(self, stream_id: int) -> None:
        stream = self._streams.pop(stream_id)
        self._counts[stream.inbound] -= 1
        if stream.lingering:
            self._lingering.remove(stream_id)

    def _queue(self, kind: int, flags: int, stream_id: int, length: int, body: bytes = b"") -> None:
        self._out.append(_HEADER.pack(0, kind, flags, stream_id, length))
        if body:
            self._out.append(body)
        self.pending_bytes += _HEADER.size + len(body)
