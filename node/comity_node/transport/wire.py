"""One connection as bytes: reads are buffered, and what a stranger may send before it has proved its key is bounded.

Until `lift_budget` is called the peer may send so many bytes in all and no more, whatever the protocols above read.
Nothing is copied on the way unless bytes were put back with `unread`: what the socket gave is what `receive` returns.
"""

from __future__ import annotations

import socket
from typing import Protocol

import trio

from comity.errors import FrameTooLarge, LinkClosed

#: The most that one read takes from a socket: four of Noise's largest messages. Half as much measured a tenth slower.
_READ_BYTES = 256 * 1024


class RawStream(Protocol):
    """What a `Wire` needs of a connection: a socket, or a stream through a relay."""

    @property
    def remote_address(self) -> str:
        """The other end as a multiaddr without /p2p; "" if unknown."""
        ...

    async def receive_some(self, max_bytes: int) -> bytes:
        """Return at least one and at most `max_bytes` bytes, b"" at the end. Raises LinkClosed."""
        ...

    async def send_all(self, data: bytes) -> None:
        """Send all of `data`. Raises LinkClosed."""
        ...

    async def aclose(self) -> None:
        """Close the connection; what was sent still arrives."""
        ...

    def abort(self) -> None:
        """Close the connection at once."""
        ...


class SocketRaw:
    """A `RawStream` over a connected TCP socket, with Nagle's algorithm off."""

    def __init__(self, stream: trio.SocketStream) -> None:
        """Take over `stream`: trio has switched the algorithm off, and let it be where a socket was reset already."""
        self._stream = stream
        self._address = _address_of(stream)

    @property
    def remote_address(self) -> str:
        """See `RawStream.remote_address`: as it was when the socket was taken over."""
        return self._address

    async def receive_some(self, max_bytes: int) -> bytes:
        """See `RawStream.receive_some`."""
        try:
            data = await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise LinkClosed("the connection broke") from error
        return data if isinstance(data, bytes) else bytes(data)

    async def send_all(self, data: bytes) -> None:
        """See `RawStream.send_all`."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise LinkClosed("the connection broke") from error

    async def aclose(self) -> None:
        """See `RawStream.aclose`."""
        await self._stream.aclose()

    def abort(self) -> None:
        """See `RawStream.abort`."""
        self._stream.socket.close()


class Wire:
    """A connection on which the upgrade to an encrypted one takes place."""

    def __init__(self, raw: RawStream, *, initiator: bool, budget: int) -> None:
        """Wrap a connection.

        Args:
            raw: the connection; the wire owns it.
            initiator: whether we dialled.
            budget: bytes that the peer may send until `lift_budget`.
        """
        self._raw = raw
        self._budget: int | None = budget
        self._front = b""
        self.is_initiator = initiator

    @property
    def remote_address(self) -> str:
        """See `RawStream.remote_address`."""
        return self._raw.remote_address

    def lift_budget(self) -> None:
        """The peer has proved its key: what it sends is bounded by the multiplexer's windows from now on."""
        self._budget = None

    def unread(self, data: bytes) -> None:
        """Put back bytes that belong to whoever reads next."""
        self._front = data + self._front if self._front else data

    async def receive(self) -> bytes:
        """Return what is there, at least one byte; b"" at the end.

        Raises:
            FrameTooLarge: the peer has used up its budget.
            LinkClosed: the connection broke.
        """
        if self._front:
            data, self._front = self._front, b""
            return data
        return await self._more(1)

    async def read(self, n: int | None = None) -> bytes:
        """Return exactly `n` bytes; without `n` whatever is there, at least one.

        Raises:
            FrameTooLarge: the peer has used up its budget, or `n` is more than is left of it.
            LinkClosed: the connection broke or ended.
        """
        wanted = 1 if n is None else n
        while (missing := wanted - len(self._front)) > 0:
            data = await self._more(missing)
            if not data:
                raise LinkClosed("the peer closed the connection")
            self._front += data
        end = len(self._front) if n is None else n
        taken, self._front = self._front[:end], self._front[end:]
        return taken

    async def _more(self, needed: int) -> bytes:
        if self._budget is None:
            return await self._raw.receive_some(_READ_BYTES)
        if needed > self._budget:
            raise FrameTooLarge(f"{needed} bytes more are too many before the peer has proved its key")
        data = await self._raw.receive_some(min(_READ_BYTES, self._budget))
        self._budget -= len(data)
        return data

    async def write(self, data: bytes) -> None:
        """Send all of `data`.

        Raises:
            LinkClosed: the connection broke.
        """
        await self._raw.send_all(data)

    async def close(self) -> None:
        """Close the connection."""
        await self._raw.aclose()

    def abort(self) -> None:
        """Close the connection at once."""
        self._raw.abort()


def _address_of(stream: trio.SocketStream) -> str:
    try:
        name = stream.socket.getpeername()
    except OSError:
        return ""
    match stream.socket.family:
        case socket.AF_INET:
            return f"/ip4/{name[0]}/tcp/{name[1]}"
        case socket.AF_INET6:
            return f"/ip6/{name[0]}/tcp/{name[1]}"
        case _:
            return ""
