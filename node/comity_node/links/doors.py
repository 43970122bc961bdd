"""Where peers come in: the streams that they open, greeted and given to what serves them."""

from __future__ import annotations

import logging

import trio

from comity.errors import Busy, ComityError, LinkClosed, PeerNotAttested, PeerUnreachable, PolicyDenied, ProtocolError
from comity_node.links.channel import Channel
from comity_node.links.greeting import Greeter, Greeting, greet_as_acceptor
from comity_node.links.handlers import Handlers
from comity_node.links.inbound import InboundLink
from comity_node.links.limits import LinkLimits, Window
from comity_node.links.pool import HandlerPool
from comity_node.links.state import Counters, Peer
from comity_node.links.table import PeerTable
from comity_node.links.tunnels import TUNNEL_WINDOWS, InboundTunnel, TunnelHandler, asked_tunnel
from comity_node.protocol.session import Session
from comity_node.protocol.session_states import Role, Service
from comity_node.transport.base import ByteStream, Priority, Transport
from comity_node.transport.budget import BudgetLimits, Budgets

_log = logging.getLogger("comity.links")
#: A peer that reconnects may have an old stream that has not been noticed to be dead.
_INBOUND_PER_CLASS = 2


class Doors:
    """Serves the streams of calls, and the tunnels, that peers open."""

    def __init__(
        self, transport: Transport, greeter: Greeter, limits: LinkLimits, table: PeerTable, handlers: Handlers
    ) -> None:
        #: Serves the tunnels that peers ask for; without one, every tunnel is refused.
        self.on_tunnel: TunnelHandler | None = None
        self._transport, self._greeter, self._limits = transport, greeter, limits
        self._table, self._handlers = table, handlers
        # Of what the peers' calls hold. A peer may hold what its organization may: its pools have limits of their own.
        self._budgets = Budgets(
            BudgetLimits(limits.max_all_bytes, limits.max_organization_bytes, limits.max_organization_bytes)
        )
        self._inbound: dict[tuple[str, Priority], list[InboundLink]] = {}
        self._nursery: trio.Nursery | None = None
        self._draining = False

    def open(self, nursery: trio.Nursery) -> None:
        """Serve calls in `nursery` from now on."""
        self._nursery = nursery

    def close(self) -> None:
        """Serve no more."""
        self._nursery = None

    def links(self, peer_id: str | None = None) -> list[InboundLink]:
        """The streams on which calls come, of one peer or of all."""
        return [link for key, links in self._inbound.items() if peer_id in (None, key[0]) for link in links]

    def go_away(self) -> None:
        """Take no more streams and no more calls; what was taken is still answered."""
        self._draining = True
        for link in self.links():
            link.go_away()

    async def flushed(self) -> None:
        """Wait until every answer is handed to its stream."""
        for link in self.links():
            await link.flushed()

    async def serve_messages(self, stream: ByteStream) -> None:
        """Serve a stream of calls until it ends; raises why (a ComityError)."""
        channel = self._channel(stream, Service.MESSAGES)
        windows = {Priority.CONTROL: self._limits.control, Priority.WORK: self._limits.work}
        try:
            greeting, peer = await self._greet(channel, windows)
            pool = self._pool(peer, greeting)
        except ComityError as error:
            _log.debug("a stream of %s was refused: %s", stream.remote_peer, error)
            await channel.say_goodbye()
            return
        channel.count_with(peer.counters)
        await self._serve(InboundLink(peer, channel, greeting, self._greeter, self._limits, self._handlers, pool))

    async def serve_tunnel(self, stream: ByteStream) -> None:
        """Serve a tunnel until its handler is done with it."""
        channel = self._channel(stream, Service.TUNNEL)
        try:
            greeting, peer = await self._greet(channel, TUNNEL_WINDOWS)
            with trio.fail_after(self._limits.attest_s):
                name = await asked_tunnel(channel)
        except (ComityError, trio.TooSlowError) as error:
            _log.debug("a tunnel of %s was refused: %s", stream.remote_peer, error)
            await channel.say_goodbye()
            return
        peer.tunnels_in += 1

        def closed() -> None:
            peer.tunnels_in -= 1

        await self._run_tunnel(InboundTunnel(channel, closed, peer.heard), greeting, name, peer)

    async def _serve(self, link: InboundLink) -> None:
        peer, key = link.peer, (link.peer.peer_id, link.priority)
        siblings = self._inbound.setdefault(key, [])
        siblings.append(link)
        peer.streams_in += 1
        for older in siblings[:-_INBOUND_PER_CLASS]:
            older.close("the peer has opened newer streams")
        try:
            await link.run()
        except PeerNotAttested:
            await self._transport.disconnect(peer.peer_id)
            raise
        finally:
            siblings.remove(link)
            peer.streams_in -= 1
            peer.gone_since = trio.current_time()
            if not siblings and self._inbound.get(key) is siblings:
                del self._inbound[key]

    async def _run_tunnel(self, tunnel: InboundTunnel, greeting: Greeting, name: str, peer: Peer) -> None:
        try:
            if peer.tunnels_in > self._limits.max_tunnels:
                raise Busy(f"{peer.tunnels_in - 1} tunnels of yours are open")
            if self.on_tunnel is None:
                raise PeerUnreachable("this node serves no tunnels")
            await self.on_tunnel(greeting.attested, name, tunnel)
            if not tunnel.accepted:
                raise LinkClosed("the tunnel's server did not want it")
        except ComityError as error:
            if not tunnel.accepted:
                await tunnel.refuse(error.code, error.told if isinstance(error, PolicyDenied) else str(error))
            _log.debug("the tunnel %r of %s ended: %s", name, peer.peer_id, error)
        except Exception:  # noqa: BLE001
            # A bug that a peer's bytes can reach must not stop the node for everybody else: reported here.
            _log.exception("the tunnel %r of %s failed", name, peer.peer_id)
        finally:
            tunnel.reset()  # no effect on one that was closed

    async def _greet(self, channel: Channel, windows: dict[Priority, Window]) -> tuple[Greeting, Peer]:
        """Greet whoever opened a stream; cut them if they are not attested in time."""
        try:
            with trio.fail_after(self._limits.attest_s):
                greeting = await greet_as_acceptor(channel, self._greeter, windows, self._admit)
        except (PeerNotAttested, ProtocolError, trio.TooSlowError) as error:
            await channel.say_goodbye()
            await self._transport.disconnect(channel.remote_peer)
            raise PeerNotAttested(str(error) or "the peer has not attested itself in time") from error
        self._table.give_place(greeting)  # still: it may have been forgotten in the meantime
        self._transport.confirm(channel.remote_peer, greeting.attested.organization)
        link = self._table.link(channel.remote_peer)
        link.peer.attest(greeting)
        link.kick()
        if any(lane.greeting.chain != greeting.chain for lane in link.lanes):
            link.move()  # its certificate was renewed: have it present that on our streams, too
        return greeting, link.peer

    def _admit(self, greeting: Greeting) -> None:
        if self._draining:
            raise Busy("the node is shutting down")
        self._table.give_place(greeting)

    def _pool(self, peer: Peer, greeting: Greeting) -> HandlerPool:
        """What works on the calls of a peer, over all its streams of a class."""
        priority = greeting.priority
        if self._nursery is None:
            raise LinkClosed("the node is stopping")
        if priority not in peer.pools:
            control = priority is Priority.CONTROL
            size = self._limits.max_control_handlers if control else self._limits.max_handlers
            budget = self._budgets.of(peer.peer_id, greeting.attested.organization)
            peer.pools[priority] = HandlerPool(peer.activity, self._nursery, budget, size=size)
        return peer.pools[priority]

    def _channel(self, stream: ByteStream, service: Service) -> Channel:
        session = Session(Role.ACCEPTOR, service, self._limits.session)
        return Channel(stream, session, Counters(), send_buffer=self._limits.send_buffer)
