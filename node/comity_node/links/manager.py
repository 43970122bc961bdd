"""All the links of a node."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import trio

from comity.errors import (
    Busy,
    ComityError,
    ConfigError,
    LinkClosed,
    PeerNotAttested,
    PeerUnreachable,
    ProtocolError,
)
from comity.signing import peer_id_to_bytes
from comity.trust import NodeIdentity, TrustStore
from comity_node.links.channel import Channel
from comity_node.links.greeting import Greeter, Greeting, greet_as_acceptor
from comity_node.links.inbound import InboundLink, RequestHandler
from comity_node.links.limits import LinkLimits
from comity_node.links.outbound import MESSAGES, OutboundLink
from comity_node.links.places import whose_place
from comity_node.links.state import Activity, Changes, Counters, LinkState, Peer
from comity_node.links.tunnels import (
    TUNNEL,
    InboundTunnel,
    TunnelHandler,
    TunnelStream,
    ask_for_tunnel,
    asked_tunnel,
)
from comity_node.protocol.session import Session
from comity_node.protocol.session_states import Role, Service
from comity_node.transport.address import parse_address
from comity_node.transport.base import ByteStream, Transport

if TYPE_CHECKING:
    from trio_typing import TaskStatus

_log = logging.getLogger("comity.links")
#: A peer that reconnects may have an old stream that has not been noticed to be dead.
_INBOUND_PER_PEER = 2


class Links:
    """Requests to peers and from them, and tunnels, over attested links that are kept up.

    Each node opens one long-lived stream to each peer for the requests that it makes, and serves the streams
    that peers open for theirs. Before anything else both sides attest themselves (`links.greeting`); a peer
    that fails is told why and its connections are cut.
    """

    def __init__(
        self,
        transport: Transport,
        identity: NodeIdentity,
        trust: TrustStore,
        on_request: RequestHandler,
        *,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        limits: LinkLimits | None = None,
        on_tunnel: TunnelHandler | None = None,
        allow_private: bool = False,
    ) -> None:
        """Make the links of a node; `run` starts them.

        Args:
            transport: the network; its PeerId must be the identity's. `run` runs it.
            identity: what this node presents.
            trust: who is a member.
            on_request: answers a peer's request; what it raises (a ComityError) goes back as code and text.
            now_ms: milliseconds since the Unix epoch, for certificates.
            random_bytes: for the jitter of reconnects.
            limits: bounds and times.
            on_tunnel: serves a tunnel that a peer asks for: it raises (PolicyDenied, ...) before it uses the
                stream to refuse, and returns when the tunnel is over. Without it every tunnel is refused.
            allow_private: whether loopback and private addresses that a peer names for itself are dialled.

        Raises:
            LinkError: the transport has another PeerId than the identity.
        """
        if transport.peer_id != identity.peer_id:
            raise PeerNotAttested(f"the transport is {transport.peer_id}, the identity {identity.peer_id}")
        self._transport, self._on_request, self._random_bytes = transport, on_request, random_bytes
        self._limits = limits or LinkLimits()
        self._greeter = Greeter(identity, trust, transport.addresses, now_ms, allow_private=allow_private)
        self._on_tunnel = on_tunnel
        self._outbound: dict[str, OutboundLink] = {}
        self._inbound: dict[str, list[InboundLink]] = {}
        self._nursery: trio.Nursery | None = None
        self._draining = False
        self._activity = Activity()
        #: Counts changes of any link's state; wait on it with `changes.wait(version)`.
        self.changes = Changes()

    @property
    def peer_id(self) -> str:
        """Our own PeerId."""
        return self._transport.peer_id

    def addresses(self) -> list[str]:
        """Where others can dial us."""
        return self._transport.addresses()

    def on_tunnel(self, handler: TunnelHandler) -> None:
        """Set who serves the tunnels that peers ask for."""
        self._on_tunnel = handler

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the transport and every link, until cancelled.

        Raises:
            ConfigError: the transport cannot listen.
        """
        self._transport.serve(MESSAGES, self._serve_messages)
        self._transport.serve(TUNNEL, self._serve_tunnel)
        failure: ConfigError | None = None
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(self._transport.run)
            except ConfigError as error:  # not as part of a group: the caller shows it to a person
                failure = error
            else:
                self._nursery = nursery
                for link in self._outbound.values():
                    nursery.start_soon(self._keep, link)
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self._nursery = None
        if failure is not None:
            raise failure

    def add_peer(self, peer_id: str, addresses: Sequence[str] = (), *, keep: bool = False) -> None:
        """Link with a peer from now on; of one that is known, learn further addresses.

        Args:
            peer_id: who it is.
            addresses: where it is dialled, with or without /p2p.
            keep: the operator named it: it has a place however many are known, and is never forgotten.

        Raises:
            SignatureInvalid: the PeerId is malformed.
            ConfigError: an address is malformed, or names another PeerId.
            Busy: `max_peers` are known.
        """
        peer_id_to_bytes(peer_id)
        parsed = [parse_address(text) for text in addresses]
        for address in parsed:
            if address.peer_id not in ("", peer_id):
                raise ConfigError(f"{address} is not an address of {peer_id}")
        if peer_id != self.peer_id:
            if peer_id not in self._outbound and not keep and len(self._outbound) >= self._limits.max_peers:
                raise Busy(f"{len(self._outbound)} peers are known, which is the limit", retry_after_ms=60_000)
            peer = self._link(peer_id).peer
            peer.keep = peer.keep or keep
            peer.add_addresses([address.without_peer for address in parsed], first=False)

    async def remove_peer(self, peer_id: str) -> None:
        """Forget a peer and cut its connections. It may come back by itself."""
        self._forget(peer_id)
        await self._transport.disconnect(peer_id)

    def peers(self) -> list[LinkState]:
        """The state of every link, by PeerId."""
        return [self._outbound[peer_id].peer.snapshot() for peer_id in sorted(self._outbound)]

    def state(self, peer_id: str) -> LinkState | None:
        """The state of one link, or None for a peer that is not known."""
        link = self._outbound.get(peer_id)
        return link.peer.snapshot() if link else None

    async def wait_for(self, peer_id: str, timeout_s: float) -> LinkState:
        """Wait until the link to a peer is up.

        Raises:
            PeerUnreachable: it was not in `timeout_s` seconds; the message says what is wrong.
        """
        try:
            with trio.fail_after(timeout_s):
                return await self._wait_for(peer_id)
        except trio.TooSlowError as error:
            reason = state.reason if (state := self.state(peer_id)) else "unknown peer"
            raise PeerUnreachable(f"no link to {peer_id} in {timeout_s:g} s: {reason}") from error

    async def _wait_for(self, peer_id: str) -> LinkState:
        while True:
            version = self.changes.version
            state = self.state(peer_id)
            if state is not None and state.state == "connected":
                return state
            await self.changes.wait(version)

    async def request(self, peer_id: str, payload: bytes, deadline_s: float) -> bytes:
        """Send a request to a peer and return its answer.

        Args:
            peer_id: whom to ask.
            payload: opaque, at most 4 MiB.
            deadline_s: seconds for all of it.

        Raises:
            PeerUnreachable: the peer is not known, or there is no link to it at this moment.
            Busy: the peer, or the queue to it, is full: try again after `retry_after_ms`.
            DeadlineExceeded: no answer in time; the peer may have acted on the request.
            LinkClosed: the link went down before the answer came; the peer may have acted on the request.
            PeerRefused: the peer answered with an error; `remote_code` is its code.
            FrameTooLarge: the payload, or the answer, is over the limit.
        """
        link = self._outbound.get(peer_id)
        if link is None:
            raise PeerUnreachable(f"{peer_id} is not a known peer")
        return await link.request(payload, deadline_s)

    async def open_tunnel(self, peer_id: str, name: str) -> ByteStream:
        """Open a tunnel that a peer serves. The caller closes the stream.

        Raises:
            PeerUnreachable: the peer is not known, cannot be reached or speaks no tunnels.
            PeerNotAttested: the peer does not attest itself.
            PeerRefused: the peer does not open this tunnel for us; `remote_code` says why.
            Busy: too many tunnels are open.
            LinkClosed: the stream broke.
        """
        link = self._outbound.get(peer_id)
        if link is None:
            raise PeerUnreachable(f"{peer_id} is not a known peer")
        peer = link.peer
        if peer.tunnels_out >= self._limits.max_tunnels:
            raise Busy(f"{peer.tunnels_out} tunnels to {peer_id} are open")
        peer.tunnels_out += 1
        try:
            stream, rest = await self._open_tunnel(peer, name)
        except BaseException:
            peer.tunnels_out -= 1
            raise

        def closed() -> None:
            peer.tunnels_out -= 1

        return TunnelStream(stream, rest, closed)

    async def drain(self, timeout_s: float) -> None:
        """Take and make no more requests; return when those under way are done, or after `timeout_s` seconds.

        Peers are told to go away, the last answers are sent and the connections closed; `run` is then
        cancelled by its owner.
        """
        self._draining = True
        for inbound in [link for links in self._inbound.values() for link in links]:
            inbound.go_away()
        for link in self._outbound.values():
            link.go_away()
        with trio.move_on_after(timeout_s):
            await self._activity.wait_idle()
            for inbound in [link for links in self._inbound.values() for link in links]:
                await inbound.flushed()
        async with trio.open_nursery() as nursery:
            for peer_id in self._outbound:
                nursery.start_soon(self._transport.disconnect, peer_id)

    # Outbound.

    def _link(self, peer_id: str) -> OutboundLink:
        """The link to a peer, a new one if it is not known."""
        if peer_id in self._outbound:
            return self._outbound[peer_id]
        peer = Peer(peer_id, self.changes, self._activity, max_addresses=self._limits.max_addresses)
        link = OutboundLink(peer, self._transport, self._greeter, self._limits, self._random_bytes, self._give_place)
        self._outbound[peer_id] = link
        self.changes.note()
        if self._nursery is not None:
            self._nursery.start_soon(self._keep, link)
        return link

    def _forget(self, peer_id: str) -> None:
        if link := self._outbound.pop(peer_id, None):
            link.scope.cancel()
            self.changes.note()

    def _give_place(self, greeting: Greeting) -> None:
        """Find a place among its organization's nodes for a peer that has attested itself; raises Busy."""
        peer_id, organization = greeting.attested.peer_id, greeting.attested.organization
        known = self._outbound.get(peer_id)
        if known is None or not (known.peer.keep or known.peer.place_of == organization):
            others = [link.peer for link in self._outbound.values() if link is not known]
            now = trio.current_time()
            leaving = whose_place(organization, others, known=known is not None, limits=self._limits, now=now)
            if leaving is not None:
                _log.debug("%s was gone for long, and its place is needed", leaving.peer_id)
                self._forget(leaving.peer_id)
        peer = self._link(peer_id).peer
        peer.place_of = organization
        peer.gone_since = trio.current_time()  # it is here now: its place is not given away while it greets us

    async def _keep(self, link: OutboundLink) -> None:
        with link.scope:
            await link.run()

    async def _open_tunnel(self, peer: Peer, name: str) -> tuple[ByteStream, bytes]:
        stream = await self._transport.open_stream(peer.peer_id, peer.addresses, TUNNEL)
        channel = self._channel(stream, Role.OPENER, Service.TUNNEL)
        try:
            with trio.fail_after(self._limits.attest_s):
                rest = await ask_for_tunnel(channel, self._greeter, name)
        except trio.TooSlowError as error:
            stream.reset()
            raise PeerUnreachable(f"{peer.peer_id} has not opened the tunnel in {self._limits.attest_s:g} s") from error
        except PeerNotAttested:
            await self._transport.disconnect(peer.peer_id)
            raise
        except BaseException:
            stream.reset()
            raise
        return stream, rest

    # Inbound.

    async def _serve_messages(self, stream: ByteStream) -> None:
        channel = self._channel(stream, Role.ACCEPTOR, Service.MESSAGES)
        try:
            greeting, peer = await self._greet(channel)
            nursery = self._nursery
            if nursery is None:
                raise LinkClosed("the node is stopping")
        except ComityError as error:
            _log.debug("a stream of %s was refused: %s", stream.remote_peer, error)
            await channel.say_goodbye()
            return
        channel.count_with(peer.counters)
        link = InboundLink(peer, channel, greeting, self._greeter, self._limits, self._on_request, nursery)
        siblings = self._inbound.setdefault(peer.peer_id, [])
        siblings.append(link)
        peer.streams_in += 1
        if len(siblings) > _INBOUND_PER_PEER:
            siblings[0].close("the peer has opened newer streams")
        try:
            await link.run()
        except PeerNotAttested:
            await self._transport.disconnect(peer.peer_id)
            raise
        finally:
            siblings.remove(link)
            peer.streams_in -= 1
            peer.gone_since = trio.current_time()
            if not siblings and self._inbound.get(peer.peer_id) is siblings:
                del self._inbound[peer.peer_id]

    async def _serve_tunnel(self, stream: ByteStream) -> None:
        channel = self._channel(stream, Role.ACCEPTOR, Service.TUNNEL)
        try:
            greeting, peer = await self._greet(channel)
            with trio.fail_after(self._limits.attest_s):
                name = await asked_tunnel(channel)
        except (ComityError, trio.TooSlowError) as error:
            _log.debug("a tunnel of %s was refused: %s", stream.remote_peer, error)
            await channel.say_goodbye()
            return
        peer.tunnels_in += 1

        def closed() -> None:
            peer.tunnels_in -= 1

        await self._run_tunnel(InboundTunnel(channel, closed), greeting, name, peer)

    async def _run_tunnel(self, tunnel: InboundTunnel, greeting: Greeting, name: str, peer: Peer) -> None:
        try:
            if peer.tunnels_in > self._limits.max_tunnels:
                raise Busy(f"{peer.tunnels_in - 1} tunnels of yours are open")
            if self._on_tunnel is None:
                raise PeerUnreachable("this node serves no tunnels")
            await self._on_tunnel(greeting.attested, name, tunnel)
            if not tunnel.accepted:
                raise LinkClosed("the tunnel's server did not want it")
        except ComityError as error:
            if not tunnel.accepted:
                await tunnel.refuse(error.code, str(error))
            _log.debug("the tunnel %r of %s ended: %s", name, peer.peer_id, error)
        finally:
            tunnel.reset()  # no effect on one that was closed

    async def _greet(self, channel: Channel) -> tuple[Greeting, Peer]:
        """Greet whoever opened a stream; cut them if they are not attested in time."""
        try:
            with trio.fail_after(self._limits.attest_s):
                greeting = await greet_as_acceptor(channel, self._greeter, self._admit)
        except (PeerNotAttested, ProtocolError, trio.TooSlowError) as error:
            await channel.say_goodbye()
            await self._transport.disconnect(channel.remote_peer)
            raise PeerNotAttested(str(error) or "the peer has not attested itself in time") from error
        self._give_place(greeting)  # still: it may have been forgotten in the meantime
        self._transport.confirm(channel.remote_peer)
        link = self._link(channel.remote_peer)
        link.peer.attest(greeting.attested, greeting.addresses)
        link.kick()
        return greeting, link.peer

    def _admit(self, greeting: Greeting) -> None:
        if self._draining:
            raise Busy("the node is shutting down")
        self._give_place(greeting)

    def _channel(self, stream: ByteStream, role: Role, service: Service) -> Channel:
        session = Session(role, service, self._limits.session)
        return Channel(stream, session, Counters(), send_buffer=self._limits.send_buffer)
