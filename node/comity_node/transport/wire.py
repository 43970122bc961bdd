"""A TCP socket as libp2p's raw connection, with what a stranger may cost before it has proved its key.

Until `lift_budget` is called the peer may send so many bytes in all and no more: the length prefixes of
multistream-select and Noise are read by libp2p, which does not bound the former. Reads are buffered, so
that the one-byte reads of the negotiation are no system calls.
"""

from __future__ import annotations

import trio

from comity.errors import FrameTooLarge, LinkClosed

_READ_BYTES = 128 * 1024


class Wire:
    """What libp2p calls an `IRawConnection`, over a trio socket."""

    def __init__(self, stream: trio.SocketStream, *, initiator: bool, budget: int) -> None:
        """Wrap a connected socket.

        Args:
            stream: the socket; the wire owns it.
            initiator: whether we dialled.
            budget: bytes that the peer may send until `lift_budget`.
        """
        self._stream = stream
        self._budget: int | None = budget
        self._buffer = bytearray()
        self.is_initiator = initiator

    def lift_budget(self) -> None:
        """The peer has proved its key: what it sends is bounded by the multiplexer's windows from now on."""
        self._budget = None

    async def read(self, n: int | None = None) -> bytes:
        """Return exactly `n` bytes; without `n` whatever is there, at least one.

        Raises:
            FrameTooLarge: the peer has used up its budget, or wants more than is left of it.
            LinkClosed: the connection broke or ended.
        """
        wanted = 1 if n is None else n
        while (missing := wanted - len(self._buffer)) > 0:
            if self._budget is not None and missing > self._budget:
                raise FrameTooLarge(f"{wanted} bytes more are too many before the peer has proved its key")
            data = await self._receive()
            if not data:
                raise LinkClosed("the peer closed the connection")
            self._buffer += data
        taken = bytes(self._buffer[: len(self._buffer) if n is None else n])
        del self._buffer[: len(taken)]
        return taken

    async def _receive(self) -> bytes:
        limit = _READ_BYTES if self._budget is None else min(_READ_BYTES, self._budget)
        try:
            data = bytes(await self._stream.receive_some(limit))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise LinkClosed("the connection broke") from error
        if self._budget is not None:
            self._budget -= len(data)
        return data

    async def write(self, data: bytes) -> None:
        """Send all of `data`.

        Raises:
            LinkClosed: the connection broke.
        """
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise LinkClosed("the connection broke") from error

    async def close(self) -> None:
        """Close the socket."""
        await self._stream.aclose()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the host and port of the peer, if the socket still knows."""
        try:
            name = self._stream.socket.getpeername()
        except OSError:
            return None
        return str(name[0]), int(name[1])
