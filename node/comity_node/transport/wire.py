"""One connection as bytes: reads are buffered, and what a stranger may send before it has proved its key is bounded.

Until `lift_budget` is called the peer may send so many bytes in all and no more, whatever the protocols above read.
Nothing is copied on the way unless bytes were put back with `unread`: what the socket gave is what `receive` returns.
"""

from __future__ import annotations

import os
import socket
from typing import Protocol, runtime_checkable

import trio

from comity.errors import FrameTooLarge, LinkClosed

#: The most that one read takes from a socket: four of Noise's largest messages. Half as much measured a tenth slower.
_READ_BYTES = 256 * 1024
#: Bytes that wait in the system to be sent, at most: at first and on a slow line, and on a fast one. A line is slow
#: when a write takes longer than `_SLOW_S`.
_LEAST_UNSENT = 16 * 1024
_MOST_UNSENT = 256 * 1024
_SLOW_S = 0.02


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


@runtime_checkable
class SendsAtOnce(Protocol):
    """A `RawStream` that can send without waiting."""

    def send_some(self, data: bytes) -> int:
        """Send what fits at once, and return how many bytes that is. Raises LinkClosed."""
        ...


class SocketRaw:
    """A `RawStream` over a connected TCP socket, with Nagle's algorithm off.

    The system calls are made here and not by trio's socket, whose layers cost more than the calls themselves. trio
    tells when the socket is ready, and is told when it closes.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        """Take over `stream`: trio has switched the algorithm off, and let it be where a socket was reset already."""
        self._stream = stream
        self._fd = stream.socket.fileno()
        self._is_tcp = stream.socket.family in (socket.AF_INET, socket.AF_INET6)
        self._address = _address_of(stream)
        #: The last read took all that was there, so the next has to wait.
        self._is_drained = True
        #: See `_mark_unsent`; trio has set it to this.
        self._unsent_mark = _LEAST_UNSENT

    @property
    def remote_address(self) -> str:
        """See `RawStream.remote_address`: as it was when the socket was taken over."""
        return self._address

    async def receive_some(self, max_bytes: int) -> bytes:
        """See `RawStream.receive_some`."""
        try:
            if not self._is_drained:
                await trio.lowlevel.checkpoint()
                if (data := self._read(max_bytes)) is not None:
                    return data
            while True:
                await trio.lowlevel.wait_readable(self._descriptor())
                if (data := self._read(max_bytes)) is not None:
                    return data
        except (OSError, trio.ClosedResourceError) as error:
            raise LinkClosed("the connection broke") from error

    def _read(self, max_bytes: int) -> bytes | None:
        """What is there, None if that is nothing."""
        try:
            data = os.read(self._descriptor(), max_bytes)
        except (BlockingIOError, InterruptedError):
            return None
        self._is_drained = len(data) < max_bytes
        return data

    async def send_all(self, data: bytes) -> None:
        """See `RawStream.send_all`; lets others run only if it has to wait."""
        await trio.lowlevel.checkpoint_if_cancelled()
        rest = memoryview(data)[self.send_some(data) :]
        if not rest:
            return
        began = trio.current_time()
        try:
            while rest:
                await trio.lowlevel.wait_writable(self._descriptor())
                rest = rest[self._write(rest) :]
            if self._unsent_mark > _LEAST_UNSENT and trio.current_time() - began > _SLOW_S:
                self._mark_unsent(_LEAST_UNSENT)
        except (OSError, trio.ClosedResourceError) as error:
            raise LinkClosed("the connection broke") from error

    def send_some(self, data: bytes) -> int:
        """Send what the socket takes at once, and return how many bytes that is.

        Raises:
            LinkClosed: the connection broke.
        """
        try:
            if self._unsent_mark < len(data) and self._unsent_mark < _MOST_UNSENT:
                self._mark_unsent(min(len(data), _MOST_UNSENT))
            return self._write(data)
        except (OSError, trio.ClosedResourceError) as error:
            raise LinkClosed("the connection broke") from error

    def _write(self, data: bytes | memoryview) -> int:
        try:
            return os.write(self._descriptor(), data)
        except (BlockingIOError, InterruptedError):
            return 0

    def _descriptor(self) -> int:
        """The socket's; once that is closed, the number may be another's."""
        if self._stream.socket.fileno() < 0:
            raise trio.ClosedResourceError("the socket is closed")
        return self._fd

    def _mark_unsent(self, size: int) -> None:
        """Have the system take no more when so many bytes wait in it to be sent.

        What it has taken cannot be overtaken, so on a slow line it should be little. Whoever writes more at once has
        found the line to be fast (`scheduler.BatchSize`).
        """
        self._unsent_mark = size
        if self._is_tcp and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            self._stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, size)

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
        self._send_some = raw.send_some if isinstance(raw, SendsAtOnce) else None
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

    def write_some(self, data: bytes) -> int:
        """Send what fits at once, and return how many bytes that is: 0 of a connection that cannot tell.

        Raises:
            LinkClosed: the connection broke.
        """
        return 0 if self._send_some is None else self._send_some(data)

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
