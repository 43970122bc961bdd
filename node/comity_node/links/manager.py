"""All the links of a node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from comity.errors import Busy, ConfigError, PeerNotAttested, PeerUnreachable
from comity.signing import peer_id_to_bytes
from comity.trust import Attested, NodeIdentity, TrustStore
from comity_node.links.activity import Changes
from comity_node.links.channel import Channel
from comity_node.links.doors import Doors
from comity_node.links.greeting import Greeter
from comity_node.links.handlers import Handlers, NoticeHandler, RequestHandler, StreamAnswerer
from comity_node.links.items import Items
from comity_node.links.lane import MESSAGES
from comity_node.links.limits import LinkLimits
from comity_node.links.outbound import OutboundLink
from comity_node.links.paths import describe_path
from comity_node.links.state import Counters, LinkState, Peer
from comity_node.links.table import PeerTable
from comity_node.links.tunnels import TUNNEL, TunnelHandler, TunnelStream, ask_for_tunnel
from comity_node.protocol.session import Session
from comity_node.protocol.session_states import Role, Service
from comity_node.transport.address import parse_address
from comity_node.transport.base import ByteStream, Priority, Transport

if TYPE_CHECKING:
    from trio_typing import TaskStatus


class Links:
    """Calls to peers and from them, and tunnels, over attested links that are kept up.

    Each node opens to each peer one long-lived stream of each class (CONTROL, WORK) for the calls that it makes,
    and serves the streams that peers open for theirs. Before anything else both sides attest themselves
    (`links.greeting`); a peer that fails is told why and its connections are cut.

    A call is a request, a notification or a request for a stream. A peer says how many it takes at once; further
    ones wait here, in line, so an overloaded peer is felt as waiting. What is full here as well is `Busy`.
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
        self._transport = transport
        self._limits = limits or LinkLimits()
        self._greeter = Greeter(identity, trust, transport.addresses, now_ms, allow_private=allow_private)
        self._handlers = Handlers(on_request)
        self._table = PeerTable(transport, self._greeter, self._limits, random_bytes)
        self._doors = Doors(transport, self._greeter, self._limits, self._table, self._handlers)
        self._doors.on_tunnel = on_tunnel
        transport.on_better_path(self._on_better_path)

    @property
    def changes(self) -> Changes:
        """Counts changes of any link's state; wait on it with `changes.wait(version)`."""
        return self._table.changes

    @property
    def peer_id(self) -> str:
        """Our own PeerId."""
        return self._transport.peer_id

    def addresses(self) -> list[str]:
        """Where others can dial us."""
        return self._transport.addresses()

    def on_tunnel(self, handler: TunnelHandler) -> None:
        """Set who serves the tunnels that peers ask for."""
        self._doors.on_tunnel = handler

    def on_notice(self, handler: NoticeHandler) -> None:
        """Set who takes the notifications of peers; without one they are dropped."""
        self._handlers.notice = handler

    def on_stream(self, handler: StreamAnswerer) -> None:
        """Set who serves the streams that peers ask for; without one every stream is refused."""
        self._handlers.stream = handler

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the transport and every link, until cancelled.

        Raises:
            ConfigError: the transport cannot listen.
        """
        self._transport.serve(MESSAGES, self._doors.serve_messages, strangers=True)
        self._transport.serve(TUNNEL, self._doors.serve_tunnel, strangers=True)
        failure: ConfigError | None = None
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(self._transport.run)
            except ConfigError as error:  # not as part of a group: the caller shows it to a person
                failure = error
            else:
                self._doors.open(nursery)
                self._table.start(nursery)
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self._table.stop()
                    self._doors.close()
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
            self._table.add(peer_id, [address.without_peer for address in parsed], keep=keep)

    def learn_addresses(self, peer_id: str, addresses: Sequence[str]) -> None:
        """Learn where an attested peer says that it can be dialled by now; what is not for it to name is left out.

        Raises:
            HelloRefused: an address is malformed, or there are too many.
        """
        link = self._table.get(peer_id)
        if link is not None and link.peer.attested is not None:
            link.peer.add_addresses(self._greeter.usable(addresses), first=True)

    def look_again(self) -> None:
        """The trust bundle is another one: cut who is no member now, and try the others."""
        self._table.judge_again()
        for link in self._table:
            link.kick()

    def renew(self) -> None:
        """Our own certificate is another one: present it to everybody, on new streams, before the old one expires."""
        for link in self._table:
            link.move()
            link.kick()

    @property
    def latest_epoch(self) -> int:
        """The latest epoch of the trust bundle that an attested peer has presented; 0 if none has."""
        return self._greeter.latest_epoch

    async def remove_peer(self, peer_id: str) -> None:
        """Forget a peer and cut its connections. It may come back by itself."""
        self._table.forget(peer_id)
        await self._transport.disconnect(peer_id)

    def peers(self) -> list[LinkState]:
        """The state of every link, by PeerId."""
        return [self._state(link) for link in self._table]

    def state(self, peer_id: str) -> LinkState | None:
        """The state of one link, or None for a peer that is not known."""
        link = self._table.get(peer_id)
        return self._state(link) if link else None

    def member(self, organization: str) -> Attested | None:
        """A node of an organization to which the link is up; None if there is none."""
        return next(self._members(organization), None)

    def members(self, organization: str) -> list[Attested]:
        """The nodes of an organization to which links are up, by PeerId."""
        return list(self._members(organization))

    def _members(self, organization: str) -> Iterator[Attested]:
        for link in self._table:
            peer = link.peer
            if peer.phase == "connected" and peer.attested is not None and peer.attested.organization == organization:
                yield peer.attested

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

    async def request(
        self, peer_id: str, payload: bytes, deadline_s: float, *, priority: Priority = Priority.WORK
    ) -> bytes:
        """Send a request to a peer and return its answer. If it is cancelled, so is the peer's work on it.

        Args:
            peer_id: whom to ask.
            payload: opaque, at most 4 MiB.
            deadline_s: seconds for all of it, waiting in line included; the peer stops working on it then.
            priority: CONTROL for what must not stand behind other work.

        Raises:
            PeerUnreachable: the peer is not known, or there is no link to it at this moment.
            Busy: the peer, or the line to it, is full: try again after `retry_after_ms`.
            DeadlineExceeded: no answer in time; the peer may have acted on the request.
            LinkClosed: the link went down before the answer came; the peer may have acted on the request.
            PeerRefused: the peer answered with an error; `remote_code` is its code.
            FrameTooLarge: the payload, or the answer, is over the limit.
        """
        return await self._link(peer_id).calls(priority).request(payload, deadline_s)

    async def notify(
        self, peer_id: str, payload: bytes, deadline_s: float, *, priority: Priority = Priority.WORK
    ) -> None:
        """Tell a peer something; returns when it is on its way. Nobody says whether it arrived.

        Arguments and errors are those of `request`; `deadline_s` is also what the peer has to work on it.
        """
        await self._link(peer_id).calls(priority).notify(payload, deadline_s)

    def stream(
        self, peer_id: str, payload: bytes, deadline_s: float, *, priority: Priority = Priority.WORK
    ) -> AbstractAsyncContextManager[Items]:
        """Ask a peer for a stream of items: `async with links.stream(...) as items: async for item in items: ...`.

        The peer sends no more than is read here, but for a window. At the end of the `async with` a stream that
        has not ended is cancelled. Arguments and errors are those of `request`; `deadline_s` is for the whole
        stream. What ends it early is raised by the iteration, after the items that had come.
        """
        return self._link(peer_id).stream(payload, deadline_s, priority)

    async def open_tunnel(self, peer_id: str, name: str, *, priority: Priority = Priority.BULK) -> ByteStream:
        """Open a tunnel that a peer serves. The caller closes the stream.

        Args:
            peer_id: whose tunnel.
            name: its name.
            priority: how its bytes are scheduled against everything else that goes to the peer, both ways.

        Raises:
            PeerUnreachable: the peer is not known, cannot be reached or speaks no tunnels.
            PeerNotAttested: the peer does not attest itself.
            PeerRefused: the peer does not open this tunnel for us; `remote_code` says why.
            Busy: too many tunnels are open.
            LinkClosed: the stream broke.
        """
        peer = self._link(peer_id).peer
        if peer.tunnels_out >= self._limits.max_tunnels:
            raise Busy(f"{peer.tunnels_out} tunnels to {peer_id} are open")
        peer.tunnels_out += 1
        try:
            stream, rest = await self._open_tunnel(peer, name, priority)
        except BaseException:  # whatever it was, no tunnel is open; raised again
            peer.tunnels_out -= 1
            raise

        def closed() -> None:
            peer.tunnels_out -= 1

        return TunnelStream(stream, rest, closed, peer.heard)

    async def drain(self, timeout_s: float) -> None:
        """Take and make no more calls; return when those under way are done, or after `timeout_s` seconds.

        Peers are told to go away, the last answers are sent and the connections closed; `run` is then
        cancelled by its owner.
        """
        self._doors.go_away()
        for link in self._table:
            link.go_away()
        with trio.move_on_after(timeout_s):
            await self._table.activity.wait_idle()
            await self._doors.flushed()
        async with trio.open_nursery() as nursery:
            for link in self._table:
                nursery.start_soon(self._transport.disconnect, link.peer.peer_id)

    def _link(self, peer_id: str) -> OutboundLink:
        link = self._table.get(peer_id)
        if link is None:
            raise PeerUnreachable(f"{peer_id} is not a known peer")
        return link

    def _state(self, link: OutboundLink) -> LinkState:
        peer_id, info = link.peer.peer_id, self._transport.connection_info(link.peer.peer_id)
        channels = [lane.channel for lane in link.lanes] + [each.channel for each in self._doors.links(peer_id)]
        return replace(
            link.peer.snapshot(),
            in_flight=sum(lane.calls.under_way for lane in link.lanes),
            waiting=sum(lane.calls.waiting for lane in link.lanes),
            queued_bytes=sum(each.session.pending_bytes for each in channels) + (info.queued_bytes if info else 0),
            window_bytes=info.window_bytes if info else 0,
            path=describe_path(info if link.lanes else None, self._table.organization_of),
        )

    def _on_better_path(self, peer_id: str) -> None:
        if link := self._table.get(peer_id):
            link.move()

    async def _open_tunnel(self, peer: Peer, name: str, priority: Priority) -> tuple[ByteStream, bytes]:
        stream = await self._transport.open_stream(peer.peer_id, peer.addresses, TUNNEL, priority=priority)
        session = Session(Role.OPENER, Service.TUNNEL, self._limits.session)
        channel = Channel(stream, session, Counters(), send_buffer=self._limits.send_buffer)
        try:
            with trio.fail_after(self._limits.attest_s):
                rest = await ask_for_tunnel(channel, self._greeter, name, priority)
        except trio.TooSlowError as error:
            stream.reset()
            raise PeerUnreachable(f"{peer.peer_id} has not opened the tunnel in {self._limits.attest_s:g} s") from error
        except PeerNotAttested:
            await self._transport.disconnect(peer.peer_id)
            raise
        except BaseException:  # also a cancellation leaves no stream behind; raised again
            stream.reset()
            raise
        return stream, rest
