"""Yamux (https://github.com/hashicorp/yamux/blob/master/spec.md) with no I/O: bytes in, events out.

py-libp2p's own Yamux does not hold the limits that a node among strangers needs: it does not enforce its
receive window, resets a stream whose reader is slower than five seconds, can deadlock two-way streams and
loses a connection when a write is cancelled. This one speaks the same protocol and

- takes no byte beyond the window it has granted, no stream beyond the limit, and grants no window beyond its budget;
- never waits: what a stream sends waits in that stream, and leaves in turns (`transport.scheduler`) when the line
  has room, control frames first;
- delivers the body of a frame as it comes, so that it buffers at most a header;
- keeps the slot of a stream that the peer opened until we have let it go, so that opening and resetting streams in a
  loop makes no more work at a time than `max_streams` of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from comity.errors import Busy, ProtocolError, UnexpectedMessage
from comity_node.transport.base import Priority
from comity_node.transport.budget import Budget
from comity_node.transport.yamux_frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    HEADER,
    HEADER_BYTES,
    INITIAL_WINDOW,
    MAX_SEND_WINDOW,
    MAX_WINDOW,
    PING,
    PROTOCOL_ID,
    RST,
    SYN,
    WINDOW_UPDATE,
    DataReceived,
    Event,
    MuxLimits,
    MuxMetrics,
    PeerLeaves,
    PingAnswered,
    StreamEnded,
    StreamOpened,
    StreamReset,
    WindowGrew,
)
from comity_node.transport.yamux_outbox import Outbox
from comity_node.transport.yamux_streams import Stream, Streams

__all__ = [
    "INITIAL_WINDOW",
    "MAX_WINDOW",
    "PROTOCOL_ID",
    "DataReceived",
    "Event",
    "MuxLimits",
    "MuxMetrics",
    "PeerLeaves",
    "PingAnswered",
    "StreamEnded",
    "StreamOpened",
    "StreamReset",
    "WindowGrew",
    "Yamux",
]

#: While data comes, the round trip is measured again when it was last measured so long ago.
_RTT_FRESH_S: Final = 10.0
_NOT_SENT: Final = float("inf")
_ALL: Final = 2**62
_LARGE: Final = 256 * 1024


class Yamux:
    """The state of one multiplexed connection."""

    def __init__(
        self,
        *,
        initiator: bool,
        limits: MuxLimits,
        clock: Callable[[], float] = lambda: 0.0,
        budget: Budget | None = None,
    ) -> None:
        """Make the state of a new connection.

        Args:
            initiator: whether we dialled.
            limits: what the peer may have open and unread.
            clock: seconds of a clock that never goes back; without one windows do not grow.
            budget: what windows are charged to; without one they do not grow.
        """
        self._initiator = initiator
        self._clock = clock
        self._next_id = 1 if initiator else 2
        self._streams = Streams(limits)
        if budget is not None:
            self._streams.budget.share(budget)
        self._out = Outbox()
        self._leaving = False
        self._partial = bytearray()
        self._body_stream = 0
        self._body_left = 0
        self._body_flags = 0
        self._ping_value = 0
        #: When the ping that is under way was sent; None when none is.
        self._ping_at: float | None = None
        self._measured_at = float("-inf")
        self._bytes_received = 0
        self._frames_received = 0
        #: The round trip in seconds, smoothed; 0 when it has not been measured.
        self.rtt_s = 0.0

    # Out.

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait to be sent, those included that the peer's windows do not take yet."""
        return self._out.pending_bytes

    @property
    def has_data_to_send(self) -> bool:
        """Whether `data_to_send` would return something."""
        return bool(self._out)

    @property
    def drained(self) -> list[int]:
        """Streams of which, since the last `data_to_send`, at most half a send buffer waits."""
        return self._out.drained

    def open(self, priority: Priority = Priority.WORK) -> int:
        """Open a stream and return its id.

        Raises:
            Busy: `max_streams` of ours are open, the budget for their windows is used up, or the peer reads nothing.
        """
        if not self._streams.may_open(inbound=False) or self._out.control_bytes > self._streams.limits.max_pending:
            raise Busy(f"{len(self._streams)} streams are open on this connection", retry_after_ms=100)
        stream_id = self._next_id
        stream = self._streams.add(stream_id, self._clock(), inbound=False)
        if stream is None:
            raise Busy("the memory for receive windows is used up", retry_after_ms=1000)
        self._next_id += 2
        stream.priority = priority
        self._out.say(WINDOW_UPDATE, SYN, stream_id, stream.window.size - INITIAL_WINDOW)
        return stream_id

    def set_priority(self, stream_id: int, priority: Priority) -> None:
        """Say whose bytes go before those of a stream."""
        stream = self._streams.by_id.get(stream_id)
        if stream is not None and stream.priority != priority:
            self._out.set_priority(stream, priority)

    def send_window(self, stream_id: int) -> int:
        """How many bytes more the peer takes on this stream than have been sent."""
        return self._streams.by_id[stream_id].send_window

    def unsent(self, stream_id: int) -> int:
        """How many bytes of this stream wait to be sent."""
        stream = self._streams.by_id.get(stream_id)
        return stream.unsent if stream else 0

    def send(self, stream_id: int, data: bytes) -> int:
        """Let bytes wait for the stream's turn, and return how many wait now.

        Raises:
            UnexpectedMessage: this side of the stream is ended, or was cut.
        """
        stream = self._streams.by_id.get(stream_id)
        if stream is None or stream.ended_here or stream.cut:
            raise UnexpectedMessage("bytes after the end")
        if data:
            self._out.push(stream, data)
        return stream.unsent

    def cut(self, stream_id: int) -> None:
        """Drop what waits to be sent: the stream can only be reset now, which `end` and `close` do, too."""
        stream = self._streams.by_id.get(stream_id)
        if stream is not None and not stream.ended_here:
            self._out.drop(stream)
            stream.cut = True

    def consumed(self, stream_id: int, count: int) -> None:
        """Bytes of this stream have been read: grant the peer as many again, half a window at a time."""
        stream = self._streams.by_id.get(stream_id)
        if stream is None or stream.let_go:
            return
        window = stream.window
        window.read += count
        if stream.ended_there:
            self._streams.give_back(stream, window.end())
            self._forget_if_done(stream)
        elif window.is_due:
            now = self._clock()
            if self._streams.budget.may_grow and now - self._measured_at > _RTT_FRESH_S:
                self.ping()
            if amount := self._streams.grant(stream, now, self.rtt_s):
                self._out.say(WINDOW_UPDATE, 0, stream_id, amount)

    def end(self, stream_id: int) -> None:
        """Send no more on this stream than what waits."""
        stream = self._streams.by_id.get(stream_id)
        if stream is None or stream.ended_here:
            return
        stream.ended_here = True
        if stream.cut:
            self.reset(stream_id)
        elif not stream.unsent:
            self._out.say(WINDOW_UPDATE, FIN, stream_id, 0)
            self._on_end_sent(stream)

    def close(self, stream_id: int) -> None:
        """Send no more on this stream than what waits, and drop what still comes."""
        self.end(stream_id)
        stream = self._streams.by_id.get(stream_id)
        if stream is None or stream.let_go:
            return
        stream.let_go = True
        self._streams.give_back(stream, stream.charged)
        if stream.end_sent:
            self._on_end_sent(stream)

    def reset(self, stream_id: int) -> None:
        """Tear a stream down; nothing is sent for one that both sides have ended."""
        stream = self._streams.by_id.get(stream_id)
        if stream is None:
            return
        if not (stream.end_sent and stream.ended_there):
            self._out.say(WINDOW_UPDATE, RST, stream_id, 0)
        self._forget(stream)

    def set_limits(self, limits: MuxLimits, budget: Budget | None = None) -> None:
        """Give the peer more; the windows of open streams grow too, as far as the budget goes."""
        for stream_id, amount in self._streams.widen(limits, budget, self._clock()):
            self._out.say(WINDOW_UPDATE, 0, stream_id, amount)
        if budget is not None and not self.rtt_s:
            self.ping()  # windows grow by it

    def ping(self) -> None:
        """Ask the peer for a sign of life, unless one is asked for already; `PingAnswered` is its answer."""
        if self._ping_at is None:
            self._ping_value = (self._ping_value + 1) & 0xFFFFFFFF
            self._ping_at = _NOT_SENT
            self._out.say(PING, SYN, 0, self._ping_value)

    def go_away(self, code: int = 0) -> None:
        """Take no more streams, and say so. With a code other than 0 the peer gives the connection up."""
        if not self._leaving:
            self._leaving = True
            self._out.say(GO_AWAY, 0, 0, code)

    def shut(self) -> None:
        """The connection is gone: nothing is sent or comes any more. What has come counts until it is let go."""
        self._out.clear_control()
        for stream in self._streams:
            self._on_gone(stream)

    def data_to_send(self, max_bytes: int = _ALL) -> bytes:
        """Take what is to be sent next: all control frames, and turns of streams up to about `max_bytes`."""
        if self._ping_at == _NOT_SENT:
            self._ping_at = self._clock()
        data = self._out.take(max_bytes, max(self._streams.limits.send_buffer, min(max_bytes, _LARGE)) // 2)
        for stream in self._out.ended:
            self._on_end_sent(stream)
        return data

    # In.

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes of the connection and return what they mean.

        Raises:
            ProtocolError: the peer broke the protocol or a limit; close the connection.
        """
        events: list[Event] = []
        position, size = 0, len(data)
        self._bytes_received += size
        streams, unpack_from = self._streams.by_id, HEADER.unpack_from
        while position < size:
            if self._body_left:
                body = data[position : position + self._body_left]
                position += len(body)
                self._on_body(body, events)
            elif self._partial or size - position < HEADER_BYTES:
                piece = data[position : position + HEADER_BYTES - len(self._partial)]
                position += len(piece)
                self._partial += piece
                if len(self._partial) == HEADER_BYTES:
                    version, kind, flags, stream_id, length = HEADER.unpack(self._partial)
                    self._partial.clear()
                    self._on_header(version, kind, flags, stream_id, length, events)
            else:
                version, kind, flags, stream_id, length = unpack_from(data, position)
                position += HEADER_BYTES
                # Nearly every frame of a busy connection is of this kind: whole, without flags, of an open stream.
                if not (version or kind or flags) and 0 < length <= size - position:
                    stream = streams.get(stream_id)
                    if stream is not None and length <= stream.window.left and not stream.let_go:
                        stream.window.left -= length
                        self._frames_received += 1
                        events.append(DataReceived(stream_id, data[position : position + length]))
                        position += length
                        continue
                self._on_header(version, kind, flags, stream_id, length, events)
        if self._out.control_bytes > self._streams.limits.max_pending:
            raise ProtocolError("the peer does not read the answers that it asks for")
        return events

    def _on_header(self, version: int, kind: int, flags: int, stream_id: int, length: int, events: list[Event]) -> None:
        self._frames_received += 1
        if version != 0:
            raise ProtocolError(f"Yamux version {version}")
        if kind == PING:
            self._on_ping(flags, length, events)
        elif kind == GO_AWAY:
            events.append(PeerLeaves(length))
        elif kind in (DATA, WINDOW_UPDATE):
            self._on_stream_header(kind, flags, stream_id, length, events)
        else:
            raise ProtocolError(f"Yamux frame of type {kind}")

    def _on_ping(self, flags: int, value: int, events: list[Event]) -> None:
        if flags & SYN:
            self._out.say(PING, ACK, 0, value)
        elif value == self._ping_value and self._ping_at is not None:
            now = self._clock()
            sample = max(0.0, now - self._ping_at)  # an answer to what was not sent yet says nothing
            self._ping_at, self._measured_at = None, now
            # The line of a peer that was frozen for a minute is not a minute long: one sample counts little.
            self.rtt_s += (min(sample, 4 * self.rtt_s) - self.rtt_s) / 8 if self.rtt_s else sample
            events.append(PingAnswered(sample))

    def _on_stream_header(self, kind: int, flags: int, stream_id: int, length: int, events: list[Event]) -> None:
        if flags & SYN:
            self._on_syn(stream_id, events)
        stream = self._streams.by_id.get(stream_id)
        if flags & ACK and stream is not None:
            self._streams.acknowledge(stream)
        if kind == DATA and length:
            self._expect(stream, stream_id, length)
            # What began before its stream was opened is nobody's: it is in no window.
            self._body_stream = stream_id if stream is not None else 0
            self._body_left, self._body_flags = length, flags
            return
        if kind == WINDOW_UPDATE and length and stream is not None:
            stream.send_window += length
            if stream.send_window > MAX_SEND_WINDOW:
                raise ProtocolError(f"the windows granted on stream {stream_id} add up to more than 32 bits")
            self._out.schedule(stream)
            events.append(WindowGrew(stream_id))
        self._on_end_flags(flags, stream_id, events)

    def _expect(self, stream: Stream | None, stream_id: int, length: int) -> None:
        """Take the length of a body from the window before the body comes."""
        if stream is None:
            if length > MAX_WINDOW:
                raise ProtocolError(f"a frame of {length} bytes is more than any window")
            return
        window = stream.window
        if stream.ended_there:
            raise ProtocolError(f"data after the end of stream {stream_id}")
        if length > window.left:
            raise ProtocolError(f"stream {stream_id} is {length - window.left} bytes over its window")
        window.left -= length
        if stream.let_go and window.left * 2 < window.size:
            self.reset(stream_id)  # the peer goes on sending to nobody

    def _on_syn(self, stream_id: int, events: list[Event]) -> None:
        if stream_id == 0 or (stream_id % 2 == 1) == self._initiator or stream_id in self._streams.by_id:
            raise ProtocolError(f"the peer cannot open stream {stream_id}")
        stream = None
        if not self._leaving and self._streams.may_open(inbound=True):
            stream = self._streams.add(stream_id, self._clock(), inbound=True)
        if stream is None:
            self._out.say(WINDOW_UPDATE, RST, stream_id, 0)
            return
        self._out.say(WINDOW_UPDATE, ACK, stream_id, stream.window.size - INITIAL_WINDOW)
        events.append(StreamOpened(stream_id))

    def _on_body(self, data: bytes, events: list[Event]) -> None:
        self._body_left -= len(data)
        stream = self._streams.by_id.get(self._body_stream)
        if stream is not None and not stream.let_go:
            events.append(DataReceived(self._body_stream, data))
        if not self._body_left:
            self._on_end_flags(self._body_flags, self._body_stream, events)

    def _on_end_flags(self, flags: int, stream_id: int, events: list[Event]) -> None:
        stream = self._streams.by_id.get(stream_id)
        if stream is None or not flags & (FIN | RST):
            return
        if flags & RST:
            self._on_gone(stream)
            events.append(StreamReset(stream_id))
        elif not stream.ended_there:
            self._on_ended_there(stream)
            events.append(StreamEnded(stream_id))
            self._forget_if_done(stream)

    # The ends of streams.

    def _on_ended_there(self, stream: Stream) -> None:
        stream.ended_there = True
        self._streams.give_back(stream, stream.window.end())

    def _on_end_sent(self, stream: Stream) -> None:
        stream.end_sent = True
        if stream.is_done:
            self._forget(stream)
        elif stream.let_go and (overdue := self._streams.linger(stream)):
            self.reset(overdue)

    def _on_gone(self, stream: Stream) -> None:
        """Neither side sends any more; what has come can still be read."""
        self._out.drop(stream)
        stream.ended_here = stream.end_sent = True
        if not stream.ended_there:
            self._on_ended_there(stream)
        self._forget_if_done(stream)

    def _forget_if_done(self, stream: Stream) -> None:
        if stream.is_done:
            self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        self._out.drop(stream)
        self._streams.remove(stream)

    def metrics(self) -> MuxMetrics:
        """What the connection has carried and holds now."""
        windows = [stream.window for stream in self._streams if not stream.let_go]
        return MuxMetrics(
            bytes_sent=self._out.bytes_sent,
            bytes_received=self._bytes_received,
            frames_sent=self._out.frames_sent,
            frames_received=self._frames_received,
            streams=len(self._streams),
            queued_bytes=self.pending_bytes,
            unread_bytes=sum(window.unread for window in windows),
            window_bytes=max((window.size for window in windows), default=0),
            granted_bytes=self._streams.budget.used,
            rtt_ms=self.rtt_s * 1000,
        )
