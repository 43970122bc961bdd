"""TCP connections with a peer that connects to us at the same moment (simultaneous open, RFC 9293 section 3.5)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from comity.errors import ComityError, LinkClosed
from comity_node.transport.address import Address, ip_address
from comity_node.transport.dial import connect_from, reusable_socket

_log = logging.getLogger("comity.dcutr")
#: A packet that comes before its translation is open is refused or lost: it is sent again.
_AGAIN_S: Final = 0.05
_MAX_SOCKETS: Final = 8


class Meeting:
    """Connects from a port to some addresses, again and again, and accepts what comes from there.

    On each connection that comes about `secure` is called; the meeting is over when that has worked for one.
    """

    def __init__(
        self,
        port: int,
        addresses: Sequence[Address],
        secure: Callable[[trio.SocketStream], Awaitable[None]],
        *,
        one_at_a_time: bool,
    ) -> None:
        """Prepare a meeting; cancel `run` to give up.

        Args:
            port: our own, from which a connection to the relay was made.
            addresses: IP addresses where the peer is seen.
            secure: makes a secured connection, which it keeps; what it raises (a ComityError) is one failure.
            one_at_a_time: whether we begin the handshakes: then the peer sees only one that is completed.
        """
        self._port, self._addresses, self._secure = port, list(addresses), secure
        self._handshakes = trio.CapacityLimiter(1 if one_at_a_time else _MAX_SOCKETS)
        self._sockets = 0
        self._met = False

    async def run(self) -> None:
        """Meet.

        Raises:
            LinkClosed: the port cannot be used any more.
        """
        listeners: list[trio.socket.SocketType] = []
        try:
            for kind in sorted({each.kind for each in self._addresses}):
                listeners.append(self._listener(kind))
            async with trio.open_nursery() as nursery:
                for listener in listeners:
                    nursery.start_soon(self._accept, listener, nursery)
                for address in self._addresses:
                    nursery.start_soon(self._connect, address, nursery)
        except OSError as error:  # of the listeners: what the tasks meet with they handle
            raise LinkClosed(f"port {self._port} cannot be shared: {error.strerror or error}") from error
        finally:
            for listener in listeners:
                listener.close()
        if not self._met:
            raise LinkClosed("nobody came")

    def _listener(self, kind: str) -> trio.socket.SocketType:
        listener = reusable_socket(kind, self._port)
        try:
            listener.listen(_MAX_SOCKETS)
        except OSError:
            listener.close()
            raise
        return listener

    async def _accept(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        expected = {each.host for each in self._addresses}
        while True:
            try:
                made, name = await listener.accept()
            except OSError:
                await trio.sleep(_AGAIN_S)  # whoever came is gone again
                continue
            if ip_address(str(name[0]), 0).host in expected and self._sockets < _MAX_SOCKETS:
                nursery.start_soon(self._try, trio.SocketStream(made), nursery.cancel_scope)
            else:
                made.close()

    async def _connect(self, address: Address, nursery: trio.Nursery) -> None:
        while True:
            try:
                made = await connect_from(self._port, address)
            except OSError:  # refused, or there is a connection between these two ports already
                pass
            else:
                await self._try(made, nursery.cancel_scope)
            await trio.sleep(_AGAIN_S)

    async def _try(self, made: trio.SocketStream, scope: trio.CancelScope) -> None:
        kept = False
        self._sockets += 1
        try:
            async with self._handshakes:
                await self._secure(made)
                kept = self._met = True
                scope.cancel()
        except (ComityError, OSError) as error:
            _log.debug("a connection half-way failed: %s", error)
        finally:
            self._sockets -= 1
            if not kept:
                made.socket.close()
