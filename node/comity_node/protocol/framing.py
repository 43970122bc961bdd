"""Length-prefixed frames on a byte stream, with no I/O.

A frame is a 32-bit big-endian length and that many bytes: one type byte and a payload. The length is
compared with the limit as soon as its four bytes are there, before anything is allocated for it.
"""

from __future__ import annotations

import struct

from comity.errors import FrameTooLarge, ProtocolError

#: Bytes of the length prefix.
PREFIX_BYTES = 4
_PREFIX = struct.Struct(">I")


def encode_frame(frame_type: int, *parts: bytes) -> bytes:
    """Return the frame of a type byte and a payload given in parts.

    Args:
        frame_type: 0..255.
        parts: the payload; the parts are joined.
    """
    length = 1 + sum(len(part) for part in parts)
    return b"".join((_PREFIX.pack(length), bytes((frame_type,)), *parts))


class FrameDecoder:
    """Cuts a stream of bytes into frames, however the bytes are chunked.

    Bytes that are not yet a whole frame wait in one buffer, which never holds more than one frame of the
    limit and one chunk of the caller's.
    """

    __slots__ = ("_broken", "_buffer", "_start", "limit")

    def __init__(self, limit: int) -> None:
        """Make a decoder.

        Args:
            limit: the largest length (type byte and payload) that is taken, in bytes. It may be changed
                between frames.
        """
        self.limit = limit
        self._buffer = bytearray()
        self._start = 0
        self._broken = False

    def feed(self, data: bytes) -> None:
        """Take bytes from the stream; call `next_frame` until it returns None before feeding more."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def next_frame(self) -> tuple[int, bytes] | None:
        """Return the type and payload of the next whole frame, or None if it is not there yet.

        Raises:
            FrameTooLarge: its length prefix, which may be all that is there of it, is over the limit.
            ProtocolError: the frame is empty (it has not even a type), or the decoder has raised before.
        """
        length = self._length()
        if length is None:
            return None
        begin = self._start + PREFIX_BYTES
        end = begin + length
        if len(self._buffer) < end:
            return None
        frame_type = self._buffer[begin]
        with memoryview(self._buffer) as view:
            payload = bytes(view[begin + 1 : end])
        self._start = end
        return frame_type, payload

    def take_rest(self) -> bytes:
        """Return the bytes that no frame has used, and forget them (the stream becomes raw from here)."""
        rest = bytes(self._buffer[self._start :])
        self._buffer.clear()
        self._start = 0
        return rest

    @property
    def buffered(self) -> int:
        """How many bytes wait for the rest of their frame."""
        return len(self._buffer) - self._start

    def _length(self) -> int | None:
        if self._broken:
            raise ProtocolError("this stream has broken the framing before")
        if self.buffered < PREFIX_BYTES:
            return None
        (length,) = _PREFIX.unpack_from(self._buffer, self._start)
        if length > self.limit:
            self._broken = True
            self._buffer.clear()
            self._start = 0
            raise FrameTooLarge(f"a frame of {length} bytes is over the limit of {self.limit}")
        if length == 0:
            self._broken = True
            raise ProtocolError("a frame without a type")
        return int(length)
