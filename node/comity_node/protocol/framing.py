"""Length-prefixed frames on a byte stream, with no I/O.

A frame is a 32-bit big-endian length and that many bytes: one type byte and a payload. The length is
compared with the limit as soon as its four bytes are there, before anything is allocated for it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NoReturn

from comity.errors import FrameTooLarge, ProtocolError

#: Bytes of the length prefix.
PREFIX_BYTES = 4
_PREFIX = struct.Struct(">I")
#: Length and type together.
_HEAD = struct.Struct(">IB")


def encode_frame(frame_type: int, *parts: bytes) -> bytes:
    """Return the frame of a type byte and a payload given in parts.

    Args:
        frame_type: 0..255.
        parts: the payload; the parts are joined.
    """
    length = 1 + sum(len(part) for part in parts)
    return b"".join((_HEAD.pack(length, frame_type), *parts))


class FrameDecoder:
    """Cuts a stream of bytes into frames, however the bytes are chunked.

    Whole frames are read where they came, in `buffer`: `frames` says where each one's payload begins and ends
    there. Bytes that are not yet a whole frame are collected apart, never more than one frame of the limit and
    one chunk of the caller's.
    """

    __slots__ = ("_broken", "_missing", "_partial", "_start", "buffer", "limit")

    def __init__(self, limit: int) -> None:
        """Make a decoder.

        Args:
            limit: the largest length (type byte and payload) that is taken, in bytes. It may be changed
                between frames.
        """
        self.limit = limit
        #: What `frames` speaks of, until the next `feed`.
        self.buffer = b""
        self._start = 0
        self._partial = bytearray()
        self._missing = 0
        self._broken = False

    def feed(self, data: bytes) -> None:
        """Take bytes from the stream; then go through `frames` before feeding more."""
        if self._start < len(self.buffer):  # the caller has stopped in between
            self._hold(self.buffer[self._start :], 0)
        if not self._partial:
            self.buffer, self._start = data, 0
            return
        self._partial += data
        self._missing -= len(data)
        if self._missing <= 0:
            self.buffer, self._start = bytes(self._partial), 0
            self._partial = bytearray()

    def frames(self) -> Iterator[tuple[int, int, int]]:
        """Yield each whole frame: its type, and where its payload begins and ends in `buffer`.

        The caller may stop after any frame and come back later.

        Raises:
            FrameTooLarge: a length prefix, which may be all that is there of its frame, is over the limit.
            ProtocolError: a frame is empty (it has not even a type), or the decoder has raised before.
        """
        if self._broken:
            raise ProtocolError("this stream has broken the framing before")
        buffer, start, size = self.buffer, self._start, len(self.buffer)
        while size - start > PREFIX_BYTES:
            length, frame_type = _HEAD.unpack_from(buffer, start)
            if not 0 < length <= self.limit:
                self._refuse(length)
            end = start + PREFIX_BYTES + length
            if end > size:
                break
            self._start = end
            yield frame_type, start + PREFIX_BYTES + 1, end
            start = end
        if start < size:
            self._wait_for_more(buffer[start:])
        else:  # an idle stream holds no memory
            self.buffer, self._start = b"", 0

    def take_rest(self) -> bytes:
        """Return the bytes that no frame has used, and forget them (the stream becomes raw from here)."""
        rest = bytes(self._partial) + self.buffer[self._start :]
        self._clear()
        return rest

    @property
    def buffered(self) -> int:
        """How many bytes wait for the rest of their frame."""
        return len(self._partial) + len(self.buffer) - self._start

    def _wait_for_more(self, rest: bytes) -> None:
        if len(rest) < PREFIX_BYTES:
            self._hold(rest, PREFIX_BYTES - len(rest))
            return
        (length,) = _PREFIX.unpack_from(rest)
        if not 0 < length <= self.limit:
            self._refuse(length)
        self._hold(rest, PREFIX_BYTES + length - len(rest))

    def _hold(self, rest: bytes, missing: int) -> None:
        self._partial += rest
        self._missing = missing
        self.buffer, self._start = b"", 0

    def _refuse(self, length: int) -> NoReturn:
        self._broken = True
        self._clear()
        if length == 0:
            raise ProtocolError("a frame without a type")
        raise FrameTooLarge(f"a frame of {length} bytes is over the limit of {self.limit}")

    def _clear(self) -> None:
        self.buffer, self._start = b"", 0
        self._partial = bytearray()
        self._missing = 0
