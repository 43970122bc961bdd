"""Unsigned varints (https://github.com/multiformats/unsigned-varint) and the messages that they delimit.

libp2p's small protocols send protobuf messages, each after its length as a varint. `Delimited` takes such a
message out of a stream of bytes: it refuses a length before anything of that length is stored, and what comes
after the message, which may be the first bytes of something else, is left in `rest`.
"""

from __future__ import annotations

from typing import Final

from comity.errors import FrameTooLarge, ProtocolError

#: The specification allows nine bytes; lengths and codes here need fewer.
_MAX_BYTES: Final = 5


def encode_varint(number: int) -> bytes:
    """Return a number as a varint, in the one shortest form."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def decode_varint(data: bytes | bytearray, position: int = 0) -> tuple[int, int] | None:
    """Read a varint.

    Args:
        data: where it is.
        position: of its first byte.

    Returns:
        The number and the position after it; None if it is not complete.

    Raises:
        ProtocolError: it is longer than five bytes, or than the number needs.
    """
    number = 0
    for index in range(_MAX_BYTES):
        if position + index >= len(data):
            return None
        byte = data[position + index]
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if byte == 0 and index:
                raise ProtocolError("a varint is longer than its number needs")
            return number, position + index + 1
    raise ProtocolError(f"a varint is longer than {_MAX_BYTES} bytes")


def delimit(message: bytes) -> bytes:
    """Return a message after its length."""
    return encode_varint(len(message)) + message


class Delimited:
    """Takes messages out of a stream of bytes."""

    def __init__(self, max_bytes: int) -> None:
        """Begin with nothing.

        Args:
            max_bytes: of one message.
        """
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    def receive(self, data: bytes) -> None:
        """Bytes came. Call `take` until it returns None before there are more."""
        self._buffer += data

    def take(self) -> bytes | None:
        """Return the next message; None if it is not complete.

        Raises:
            FrameTooLarge: it says that it is longer than `max_bytes`.
            ProtocolError: its length is malformed.
        """
        read = decode_varint(self._buffer)
        if read is None:
            return None
        length, start = read
        if length > self._max_bytes:
            raise FrameTooLarge(f"a message of {length} bytes, of which {self._max_bytes} are taken")
        if len(self._buffer) < start + length:
            return None
        message = bytes(self._buffer[start : start + length])
        del self._buffer[: start + length]
        return message

    @property
    def wanted(self) -> int:
        """How many bytes may be read at most, so that nothing is stored beyond a message and its length."""
        return max(self._max_bytes + _MAX_BYTES - len(self._buffer), 1)

    @property
    def rest(self) -> bytes:
        """What has come beyond the messages that were taken."""
        return bytes(self._buffer)
