"""What waits to be sent on a Yamux connection: control frames, and the streams' bytes in turns."""

from __future__ import annotations

from typing import Final

from comity_node.transport.base import Priority
from comity_node.transport.scheduler import Scheduler
from comity_node.transport.yamux_frames import DATA, FIN, HEADER, HEADER_BYTES, WINDOW_UPDATE
from comity_node.transport.yamux_streams import Stream

_pack = HEADER.pack
#: A batch that has less room left is full: what would fit is not worth a header.
_LEAST_PIECE: Final = 1024


class Outbox:
    """Frames in the order in which they should leave: control frames first, then by priority and turn."""

    def __init__(self) -> None:
        self._control = bytearray()
        self._scheduler = Scheduler()
        self._streams: dict[int, Stream] = {}
        self._unsent = 0
        #: Since the connection was made; headers included.
        self.bytes_sent = 0
        self.frames_sent = 0
        #: Streams of which, since the last `take`, less waits than the mark that was given to it.
        self.drained: list[int] = []
        #: Streams whose end was sent by the last `take`.
        self.ended: list[Stream] = []

    @property
    def control_bytes(self) -> int:
        """Bytes of control frames that wait."""
        return len(self._control)

    @property
    def pending_bytes(self) -> int:
        """All bytes that wait, those included that the peer's windows do not take yet."""
        return len(self._control) + self._unsent

    def __bool__(self) -> bool:
        """Whether `take` would return something."""
        return bool(self._control or self._scheduler)

    def say(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        """Let a control frame wait."""
        self._control += _pack(0, kind, flags, stream_id, length)

    def push(self, stream: Stream, data: bytes) -> None:
        """Let bytes of a stream wait."""
        stream.out.append(data)
        stream.unsent += len(data)
        self._unsent += len(data)
        if not stream.waiting:
            self.schedule(stream)

    def schedule(self, stream: Stream) -> None:
        """Let a stream wait for its turn if it has something to send and the peer takes it."""
        if stream.unsent and stream.send_window and not stream.waiting:
            stream.waiting = True
            self._streams[stream.id] = stream
            self._scheduler.add(stream.id, stream.priority)

    def set_priority(self, stream: Stream, priority: Priority) -> None:
        """Let a stream wait in another class."""
        if stream.waiting:
            self._scheduler.remove(stream.id, stream.priority)
            self._scheduler.add(stream.id, priority)
        stream.priority = priority

    def drop(self, stream: Stream) -> None:
        """Forget what waits of a stream."""
        if stream.waiting:
            self._scheduler.remove(stream.id, stream.priority)
            del self._streams[stream.id]
            stream.waiting = False
        self._unsent -= stream.unsent
        stream.unsent = 0
        stream.out.clear()

    def clear_control(self) -> None:
        """Forget the control frames that wait."""
        self._control.clear()

    def take(self, max_bytes: int, low: int) -> bytes:
        """Take all control frames, and turns of streams up to about `max_bytes`.

        Args:
            max_bytes: of all frames; one piece of a stream may end a little beyond it.
            low: when no more than this waits of a stream after its turn, it is named in `drained`.
        """
        parts: list[bytes | bytearray | memoryview] = []
        size = len(self._control)
        if size:
            parts.append(self._control)
            self._control = bytearray()
            self.frames_sent += size // HEADER_BYTES
        self.drained = []
        self.ended = []
        scheduler, streams = self._scheduler, self._streams
        while scheduler and (max_bytes - size >= _LEAST_PIECE or not parts):
            stream_id, limit = scheduler.next()
            stream = streams.pop(stream_id)
            count = min(limit, max(max_bytes - size, 1), stream.unsent, stream.send_window)
            self._take_turn(stream, count, parts)
            if stream.unsent <= low:
                self.drained.append(stream_id)
            size += count + HEADER_BYTES
            self.frames_sent += 1
            if stream.ended_here and not stream.unsent:
                # In a frame of its own: js-libp2p 3 takes a FIN before the data of the same frame, and loses them when
                # it still waits for the agreement on the stream's protocol.
                parts.append(_pack(0, WINDOW_UPDATE, FIN, stream_id, 0))
                size += HEADER_BYTES
                self.frames_sent += 1
                self.ended.append(stream)
        self.bytes_sent += size
        return b"".join(parts)

    def _take_turn(self, stream: Stream, count: int, parts: list[bytes | bytearray | memoryview]) -> None:
        parts.append(_pack(0, DATA, 0, stream.id, count))
        out, left = stream.out, count
        while left:
            chunk = out[0]
            if len(chunk) <= left:
                parts.append(out.popleft())
                left -= len(chunk)
            else:
                view = memoryview(chunk)
                parts.append(view[:left])
                out[0] = view[left:]
                left = 0
        stream.unsent -= count
        stream.send_window -= count
        self._unsent -= count
        stream.waiting = False
        self.schedule(stream)
        self._scheduler.sent(stream.priority, count)
