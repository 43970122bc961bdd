"""libp2p over TCP with Noise and Yamux.

Of py-libp2p its Noise handshake and its multistream-select are used (`transport.libp2p_upgrade`). Its host
and swarm are not: they answer identify and ping before anybody is attested, give connection slots back to
nobody, wait 250 ms before they dial, remember failed dials for a minute and keep the port when they are
left. Here

- nothing answers a peer but the protocols given to `serve`;
- a connection that has not proved its key within `handshake_s` is closed, having cost a task, a socket
  and `handshake_bytes`; when too many are unproved the oldest makes room, so silent sockets block nobody;
- a peer that is not confirmed (attested by links) within `confirm_s` is cut; until then it has few streams
  and small windows, and when too many such strangers are connected the oldest makes room;
- only so many handshakes a second are computed for those who connect;
- connections are bounded in all and for each peer, streams and unread bytes for each connection.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from comity.errors import Busy, ComityError, ConfigError, LinkClosed, PeerUnreachable
from comity.signing import PrivateKey
from comity_node.transport import yamux
from comity_node.transport.address import Address, is_own_machine, parse_address
from comity_node.transport.base import ByteStream, StreamHandler
from comity_node.transport.libp2p_upgrade import Upgrader, agree, propose
from comity_node.transport.muxed import MuxedConnection, MuxedStream
from comity_node.transport.pace import Pace
from comity_node.transport.wire import Wire

if TYPE_CHECKING:
    from trio_typing import TaskStatus

_log = logging.getLogger("comity.transport")


@dataclass(frozen=True, slots=True)
class Libp2pLimits:
    """What strangers and peers may cost.

    Attributes:
        handshake_s: from the TCP connection to a proved key and an agreed multiplexer.
        handshake_bytes: what a peer may send in that time.
        handshakes_per_s: handshakes of inbound connections that are computed, in the long run.
        handshake_burst: of them, at once after a quiet time.
        handshake_wait_s: an inbound connection that would wait longer for its handshake is closed.
        max_unproved: inbound connections that have not proved their key; over that the oldest is closed.
        confirm_s: from there until links have attested the peer.
        max_strangers: connections of peers that are not attested; over that the oldest is closed.
        max_connections: all connections together.
        max_per_peer: connections of one peer; over that its oldest is closed.
        dial_s: for one address, TCP only.
        negotiate_s: to agree on the protocol of a stream.
        stranger_mux: streams and bytes of one connection of a peer that is not attested.
        mux: the same once it is.
    """

    handshake_s: float = 5.0
    handshake_bytes: int = 16 * 1024
    handshakes_per_s: float = 50.0
    handshake_burst: int = 128
    handshake_wait_s: float = 1.0
    max_unproved: int = 128
    confirm_s: float = 10.0
    max_strangers: int = 128
    max_connections: int = 1024
    max_per_peer: int = 4
    dial_s: float = 5.0
    negotiate_s: float = 10.0
    stranger_mux: yamux.MuxLimits = field(
        default_factory=lambda: yamux.MuxLimits(max_streams=4, window=yamux.INITIAL_WINDOW)
    )
    mux: yamux.MuxLimits = field(default_factory=yamux.MuxLimits)


class Libp2pTransport:
    """A `Transport` over libp2p."""

    def __init__(
        self,
        key: PrivateKey,
        listen: Sequence[str],
        *,
        announce: Sequence[str] = (),
        limits: Libp2pLimits | None = None,
        allow_private: bool = True,
    ) -> None:
        """Make a transport; `run` starts it.

        Args:
            key: the node's key; its PeerId is the transport's.
            listen: multiaddrs to listen on (`/ip4/0.0.0.0/tcp/4001`; port 0 for any); none: only dial.
            announce: multiaddrs under which others can dial this node, when those listened on do not say it
                (a wildcard address, address translation).
            limits: what strangers and peers may cost.
            allow_private: whether a name may lead to this machine; peers name names, too, and choose where they lead.

        Raises:
            ConfigError: an address is malformed, or one to listen on is not an IP address.
        """
        self._limits = limits or Libp2pLimits()
        self._listen = [_listen_address(text) for text in listen]
        self._announce = [parse_address(text) for text in announce]
        self._peer_id = key.peer_id
        self._allow_private = allow_private
        pace = Pace(
            self._limits.handshakes_per_s,
            burst=self._limits.handshake_burst,
            longest_wait_s=self._limits.handshake_wait_s,
        )
        self._upgrader = Upgrader(key, pace)
        self._handlers: dict[str, StreamHandler] = {}
        self._unproved: dict[int, trio.CancelScope] = {}
        self._accepted = 0
        self._connections: dict[str, list[MuxedConnection]] = {}
        self._confirmed: set[str] = set()
        self._strangers: dict[MuxedConnection, None] = {}
        self._dialling: dict[str, trio.Lock] = {}
        self._bound: list[Address] = []
        self._nursery: trio.Nursery | None = None

    @property
    def peer_id(self) -> str:
        """Our own PeerId."""
        return self._peer_id

    def addresses(self) -> list[str]:
        """See `Transport.addresses`: what is announced, or else what is listened on, without wildcards."""
        known = self._announce or [address for address in self._bound if not address.is_wildcard]
        return [address.without_peer for address in known]

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """See `Transport.serve`."""
        self._handlers[protocol] = handler

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Transport.run`."""
        listeners: list[trio.SocketListener] = []
        try:
            for address in self._listen:
                listeners += await _bind(address)
            self._bound = [_bound_address(listener) for listener in listeners]
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if listeners:
                    await nursery.start(trio.serve_listeners, self._accept, listeners)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            for listener in listeners:
                listener.socket.close()

    async def open_stream(self, peer_id: str, addresses: Sequence[str], protocol: str) -> ByteStream:
        """See `Transport.open_stream`."""
        connection = await self._connection_to(peer_id, addresses)
        stream = connection.open()
        try:
            with trio.fail_after(self._limits.negotiate_s):
                await propose(stream, protocol)
        except trio.TooSlowError as error:
            stream.reset()
            raise PeerUnreachable(f"{peer_id} does not answer on its connection") from error
        except BaseException:
            stream.reset()
            raise
        return stream

    def confirm(self, peer_id: str) -> None:
        """See `Transport.confirm`."""
        for connection in self._connections.get(peer_id, []):
            self._confirmed.add(peer_id)
            self._strangers.pop(connection, None)
            connection.set_limits(self._limits.mux)

    async def disconnect(self, peer_id: str) -> None:
        """See `Transport.disconnect`; returns when the connections are gone."""
        self._confirmed.discard(peer_id)
        connections = list(self._connections.get(peer_id, []))
        for connection in connections:
            connection.close("the peer was disconnected")
        await trio.lowlevel.checkpoint()
        for connection in connections:
            await connection.closed.wait()

    # Connections that come.

    async def _accept(self, socket: trio.SocketStream) -> None:
        if self._count() >= self._limits.max_connections:
            socket.socket.close()
            return
        self._accepted += 1
        token = self._accepted
        scope = self._unproved[token] = trio.CancelScope()
        while len(self._unproved) > self._limits.max_unproved:
            self._unproved.pop(next(iter(self._unproved))).cancel()
        connection: MuxedConnection | None = None
        try:
            with scope:
                connection = await self._secure(socket, None)
        except ComityError as error:
            _log.debug("an inbound connection failed: %s", error)
        finally:
            self._unproved.pop(token, None)
        if connection is not None:
            await self._carry(connection)

    async def _secure(self, socket: trio.SocketStream, expected_peer: str | None) -> MuxedConnection:
        initiator = expected_peer is not None
        wire = Wire(socket, initiator=initiator, budget=self._limits.handshake_bytes)
        try:
            with trio.fail_after(self._limits.handshake_s):
                channel, peer_id = await self._upgrader.upgrade(wire, expected_peer)
        except trio.TooSlowError as error:
            socket.socket.close()
            raise LinkClosed(f"the peer has not proved its key in {self._limits.handshake_s:g} s") from error
        except BaseException:
            socket.socket.close()
            raise
        return MuxedConnection(channel, peer_id, initiator=initiator, limits=self._limits.stranger_mux)

    async def _carry(
        self, connection: MuxedConnection, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """The life of a connection that has proved its key."""
        peer_id = connection.remote_peer
        siblings = self._connections.setdefault(peer_id, [])
        siblings.append(connection)
        usable = [each for each in siblings if each.is_usable]
        if len(usable) > self._limits.max_per_peer:
            usable[0].close("the peer has newer connections")
        if peer_id in self._confirmed:
            connection.set_limits(self._limits.mux)
        else:
            self._strangers[connection] = None
            if len(self._strangers) > self._limits.max_strangers:
                oldest = next(iter(self._strangers))
                del self._strangers[oldest]
                oldest.close("there are too many strangers")
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cut_unconfirmed, connection)
                await connection.run(self._on_stream)
                nursery.cancel_scope.cancel()
        finally:
            self._strangers.pop(connection, None)
            siblings.remove(connection)
            if not siblings:
                del self._connections[peer_id]
                self._confirmed.discard(peer_id)

    async def _cut_unconfirmed(self, connection: MuxedConnection) -> None:
        await trio.sleep(self._limits.confirm_s)
        if connection.remote_peer not in self._confirmed:
            connection.close(f"the peer was not attested in {self._limits.confirm_s:g} s")

    def _on_stream(self, stream: MuxedStream) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(self._serve, stream)

    async def _serve(self, stream: MuxedStream) -> None:
        try:
            with trio.fail_after(self._limits.negotiate_s):
                protocol = await agree(stream, self._handlers)
            await self._handlers[protocol](stream)
        except (ComityError, trio.TooSlowError) as error:
            _log.debug("a stream of %s failed: %s", stream.remote_peer, error)
        finally:
            stream.reset()  # no effect if the handler has closed it

    # Connections that we make.

    async def _connection_to(self, peer_id: str, addresses: Sequence[str]) -> MuxedConnection:
        lock = self._dialling.setdefault(peer_id, trio.Lock())
        try:
            async with lock:
                for connection in reversed(self._connections.get(peer_id, [])):
                    if connection.is_usable:
                        return connection
                return await self._dial(peer_id, addresses)
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._dialling.pop(peer_id, None)

    async def _dial(self, peer_id: str, addresses: Sequence[str]) -> MuxedConnection:
        if self._nursery is None:
            raise LinkClosed("the transport is not running")
        if self._count() >= self._limits.max_connections:
            raise Busy(f"{self._count()} connections are open")
        failures: list[str] = []
        for text in addresses:
            try:
                connection = await self._dial_address(parse_address(text), peer_id)
            except (ComityError, OSError) as error:
                failures.append(f"{text}: {error}")
                continue
            await self._nursery.start(self._carry, connection)
            return connection
        raise PeerUnreachable(f"{peer_id} cannot be reached ({'; '.join(failures) or 'no address is known'})")

    async def _dial_address(self, address: Address, peer_id: str) -> MuxedConnection:
        if address.peer_id not in ("", peer_id):
            raise PeerUnreachable(f"the address is that of {address.peer_id}")
        with trio.move_on_after(self._limits.dial_s) as scope:
            socket = await trio.open_tcp_stream(address.host, address.port)
        if scope.cancelled_caught:
            raise PeerUnreachable(f"no answer in {self._limits.dial_s:g} s")
        if address.kind not in ("ip4", "ip6") and not self._allow_private:
            host = socket.socket.getpeername()[0]
            if is_own_machine(host):  # nothing has been said there
                socket.socket.close()
                raise PeerUnreachable(f"the name leads to {host}, on this machine or its link: name its IP address")
        return await self._secure(socket, peer_id)

    def _count(self) -> int:
        return sum(len(connections) for connections in self._connections.values())


def _listen_address(text: str) -> Address:
    address = parse_address(text)
    if address.kind not in ("ip4", "ip6"):
        raise ConfigError(f"{text} names a host; listen on an IP address such as /ip4/0.0.0.0/tcp/{address.port}")
    return address


async def _bind(address: Address) -> list[trio.SocketListener]:
    try:
        return list(await trio.open_tcp_listeners(address.port, host=address.host))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"cannot listen on {address.without_peer}: the port is in use; stop what uses it or choose another port"
            ) from error
        raise ConfigError(f"cannot listen on {address.without_peer}: {error.strerror or error}") from error


def _bound_address(listener: trio.SocketListener) -> Address:
    name = listener.socket.getsockname()
    return Address("ip6" if ":" in name[0] else "ip4", name[0], name[1])
