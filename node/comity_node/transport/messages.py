"""One message at a time over a stream, for libp2p's small protocols (`transport.varint`)."""

from __future__ import annotations

from collections import deque

from comity.errors import LinkClosed
from comity_node.transport.base import ByteStream
from comity_node.transport.varint import Delimited, delimit


class MessageStream:
    """A stream that carries messages, each after its length."""

    def __init__(self, stream: ByteStream, max_bytes: int) -> None:
        """Wrap a stream.

        Args:
            stream: the caller closes it.
            max_bytes: of one message that the peer sends.
        """
        self.stream = stream
        self._delimited = Delimited(max_bytes)

    async def receive(self) -> bytes:
        """Return the next message.

        Raises:
            FrameTooLarge: it says that it is longer than `max_bytes`.
            ProtocolError: its length is malformed.
            LinkClosed: the stream broke or ended.
        """
        while (message := self._delimited.take()) is None:
            data = await self.stream.receive(self._delimited.wanted)
            if not data:
                raise LinkClosed("the peer ended the stream")
            self._delimited.receive(data)
        return message

    async def send(self, message: bytes) -> None:
        """Send a message. Raises LinkClosed."""
        await self.stream.send(delimit(message))

    @property
    def rest(self) -> bytes:
        """Bytes that came after the last message, when the stream goes on with something else."""
        return self._delimited.rest


class StreamRaw:
    """A `RawStream` over a stream: a circuit, in which two peers make a connection of their own."""

    def __init__(self, stream: ByteStream, rest: bytes, remote_address: str) -> None:
        """Take a stream over.

        Args:
            stream: the circuit.
            rest: what has been read of it already.
            remote_address: of the other end of the circuit.
        """
        self._stream = stream
        self._front: deque[bytes] = deque([rest] if rest else [])
        self._remote_address = remote_address

    @property
    def remote_address(self) -> str:
        """See `RawStream.remote_address`."""
        return self._remote_address

    async def receive_some(self, max_bytes: int) -> bytes:
        """See `RawStream.receive_some`."""
        if not self._front:
            return await self._stream.receive(max_bytes)
        data = self._front.popleft()
        if len(data) > max_bytes:
            self._front.appendleft(data[max_bytes:])
        return data[:max_bytes]

    async def send_all(self, data: bytes) -> None:
        """See `RawStream.send_all`."""
        await self._stream.send(data)

    async def aclose(self) -> None:
        """See `RawStream.aclose`."""
        await self._stream.aclose()

    def abort(self) -> None:
        """See `RawStream.abort`."""
        self._stream.reset()
