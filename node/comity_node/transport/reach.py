"""How a node is reached that cannot be dialled: what relays and hole punching need of the transport, and it of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import trio

from comity.errors import LinkClosed
from comity_node.transport.address import Address
from comity_node.transport.base import ByteStream, Priority, StreamHandler
from comity_node.transport.connections import Connection, Connections
from comity_node.transport.dcutr import DCUTR, Puncher, PunchLimits
from comity_node.transport.dial import DialledSocket
from comity_node.transport.identify import IDENTIFY, Identity, ask_identity
from comity_node.transport.meeting import Meeting
from comity_node.transport.relay import STOP
from comity_node.transport.relay_client import RelayClient
from comity_node.transport.wire import RawStream


class Core(Protocol):
    """The transport below."""

    @property
    def peer_id(self) -> str:
        """Our own PeerId."""
        ...

    @property
    def connections(self) -> Connections:
        """All connections."""
        ...

    async def open_stream(
        self, peer_id: str, addresses: Sequence[str], protocol: str, *, priority: Priority = Priority.WORK
    ) -> ByteStream:
        """See `Transport.open_stream`."""
        ...

    async def open_on(self, connection: Connection, protocol: str, priority: Priority) -> ByteStream:
        """Open a stream on this connection and no other."""
        ...

    async def welcome(self, raw: RawStream, *, relay: str, peer_id: str) -> None:
        """Serve a connection that comes through a relay, until it ends."""
        ...

    async def dial(self, peer_id: str, addresses: Sequence[str]) -> Connection:
        """Make a connection, whether there is one or not."""
        ...

    async def establish(self, raw: RawStream, peer_id: str, *, relay: str = "", initiator: bool = True) -> Connection:
        """Secure a connection that was made, and begin its life."""
        ...


class Reach:
    """The relays that a node uses, and its direct connections past them."""

    def __init__(
        self,
        core: Core,
        relays: Sequence[str],
        *,
        allow_private: bool,
        punch: PunchLimits | None,
        now_s: Callable[[], float],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        """Make it; `relays.run` keeps the reservations.

        Args:
            core: the transport.
            relays: multiaddrs with /p2p of the relays through which we want to be reached.
            allow_private: whether a peer behind a relay may be met at a private address.
            punch: how hard it is tried to make direct connections of relayed ones; None: not at all.
            now_s: seconds since the Unix epoch.
            random_bytes: for jitter.

        Raises:
            ConfigError: an address of a relay is malformed.
        """
        self._core, self._punches = core, punch is not None
        #: The relays that this node uses.
        self.relays = RelayClient(self, relays, now_s=now_s, random_bytes=random_bytes)
        #: Makes direct connections of relayed ones.
        self.puncher = Puncher(self, allow_private=allow_private, limits=punch)

    def handlers(self) -> Mapping[str, StreamHandler]:
        """What is served to members for this."""
        stop: dict[str, StreamHandler] = {STOP: self.relays.serve_stop}
        return {**stop, DCUTR: self.puncher.serve} if self._punches else stop

    async def tend(self, connection: Connection) -> None:
        """Upgrade a connection that has come through a relay, if that is wanted."""
        if self._punches and connection.relay and connection.inbound:
            await self.puncher.upgrade(connection)

    # For both.

    @property
    def peer_id(self) -> str:
        """Our own PeerId."""
        return self._core.peer_id

    @property
    def connections(self) -> Connections:
        """All connections."""
        return self._core.connections

    async def open_stream(
        self, peer_id: str, addresses: Sequence[str], protocol: str, *, priority: Priority = Priority.WORK
    ) -> ByteStream:
        """See `Transport.open_stream`."""
        return await self._core.open_stream(peer_id, addresses, protocol, priority=priority)

    # For the client of relays.

    async def welcome(self, raw: RawStream, *, relay: str, peer_id: str) -> None:
        """See `RelayUser.welcome`."""
        await self._core.welcome(raw, relay=relay, peer_id=peer_id)

    async def learn_observed(self, relay: str) -> None:
        """See `RelayUser.learn_observed`."""
        connection = self._dialled(relay)
        if connection is not None and connection.observed is None:
            connection.observed = (await self._identity(connection)).observed

    # For hole punching.

    def observed_through(self, relay: str) -> tuple[int, Address] | None:
        """See `PunchHost.observed_through`."""
        connection = self._dialled(relay)
        if connection is None or connection.observed is None:
            return None
        return connection.local_port, connection.observed

    async def listens_at(self, peer_id: str) -> Sequence[Address]:
        """See `PunchHost.listens_at`."""
        connection = self.connections.best(peer_id)
        if connection is None:
            raise LinkClosed(f"{peer_id} is not connected")
        return [each for each in (await self._identity(connection)).addresses if not each.relay]

    async def dial_directly(self, peer_id: str, addresses: Sequence[Address]) -> None:
        """See `PunchHost.dial_directly`."""
        await self._core.dial(peer_id, [each.without_peer for each in addresses if not each.relay])

    async def meet(self, peer_id: str, port: int, addresses: Sequence[Address], *, initiator: bool) -> None:
        """See `PunchHost.meet`."""

        async def secure(stream: trio.SocketStream) -> None:
            await self._core.establish(DialledSocket(stream), peer_id, initiator=initiator)

        await Meeting(port, addresses, secure, one_at_a_time=initiator).run()

    def _dialled(self, peer_id: str) -> Connection | None:
        """A connection to a relay that we have made, from a port that can be used again."""
        return next((each for each in self.connections.of(peer_id) if each.local_port and each.is_usable), None)

    async def _identity(self, connection: Connection) -> Identity:
        return await ask_identity(await self._core.open_on(connection, IDENTIFY, Priority.CONTROL))
