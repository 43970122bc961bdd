"""libp2p over TCP, directly and through relays.

A node among strangers, so

- nothing answers a peer that is not attested but the protocols served with `strangers=True`;
- a connection that has not proved its key within `handshake_s` is closed, having cost a task, a socket
  and `handshake_bytes`; when too many are unproved, the source that has most of them gives one up
  (`transport.arrivals`), so silent sockets block nobody and one source no other;
- only so many handshakes a second are computed for those who connect, for each source and in all, with a
  reserve for sources from which members have come before;
- a peer that is not confirmed (attested by links) within `confirm_s` is cut; until then it has few streams
  and small windows, and when too many such strangers are connected one of them makes room;
- connections are bounded in all and for each peer, streams and unread bytes for each connection, and unread
  bytes for each peer, organization and in all.

A node that does not listen is reached through relays (`transport.relay_client`), and where address translation
lets it, directly after that (`transport.dcutr`).
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import trio

from comity import __version__
from comity.errors import Busy, ComityError, ConfigError, LinkClosed, PeerUnreachable, ProtocolError
from comity.signing import PrivateKey
from comity_node.transport.address import Address, ip_address, parse_address
from comity_node.transport.arrivals import Arrivals
from comity_node.transport.base import ByteStream, ConnectionInfo, Priority, StreamHandler
from comity_node.transport.connections import Connection, Connections
from comity_node.transport.dcutr import PunchLimits
from comity_node.transport.dial import DialledSocket, Race, open_socket
from comity_node.transport.identify import IDENTIFY, identify_handler
from comity_node.transport.limits import Libp2pLimits
from comity_node.transport.muxed import MuxedConnection, MuxedStream
from comity_node.transport.pace import Pace, source_of
from comity_node.transport.ping import PING, serve_ping
from comity_node.transport.reach import Reach
from comity_node.transport.upgrade import Upgrader, agree, propose
from comity_node.transport.wire import RawStream, SocketRaw, Wire

if TYPE_CHECKING:
    from trio_typing import TaskStatus

__all__ = ["Libp2pLimits", "Libp2pTransport"]

_log = logging.getLogger("comity.transport")
#: Between two tracebacks in the log.
_REPORT_EVERY_S = 10.0


class Libp2pTransport:
    """A `Transport` over libp2p."""

    def __init__(
        self,
        key: PrivateKey,
        listen: Sequence[str],
        *,
        announce: Sequence[str] = (),
        relays: Sequence[str] = (),
        limits: Libp2pLimits | None = None,
        allow_private: bool = True,
        own_names: Collection[str] | None = None,
        upgrader: Upgrader | None = None,
        punch: PunchLimits | None = PunchLimits(),  # noqa: B008  (frozen)
        identify_strangers: bool = False,
        now_s: Callable[[], float] = time.time,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Make a transport; `run` starts it.

        Args:
            key: the node's key; its PeerId is the transport's.
            listen: multiaddrs to listen on (`/ip4/0.0.0.0/tcp/4001`; port 0 for any); none: only dial.
            announce: multiaddrs under which others can dial this node, when those listened on do not say it
                (a wildcard address, address translation).
            relays: multiaddrs with /p2p of the members through which this node can be reached, too. Links have to
                be told to link with them.
            limits: what strangers and peers may cost.
            allow_private: whether a name may lead to this machine; peers name names, too, and choose where they lead.
                And whether a peer behind a relay may be met at a private address.
            own_names: host names that the operator has written down. Without `allow_private`, no other name may lead
                into a private network: peers name names. None: any may.
            upgrader: secures connections; without it one with everything that Comity speaks.
            punch: how hard it is tried to make direct connections of relayed ones; None: not at all.
            identify_strangers: whether identify and ping are served to peers that are not attested, too.
            now_s: seconds since the Unix epoch, for the reservations at relays.
            random_bytes: for jitter.

        Raises:
            ConfigError: an address is malformed, or one to listen on is not an IP address.
        """
        self._limits = limits or Libp2pLimits()
        self._listen = [_listen_address(text) for text in listen]
        self._announce = [parse_address(text) for text in announce]
        self._peer_id = key.peer_id
        self._allow_private = allow_private
        self._own_names = None if allow_private or own_names is None else frozenset(map(str.lower, own_names))
        self._arrivals = Arrivals(self._limits)
        #: All connections that have proved a key.
        self.connections = Connections(self._limits, self._arrivals.pace)
        # Those who come have had their turn already (`transport.arrivals`), and those whom we dial need none.
        self._upgrader = upgrader or Upgrader(key, Pace(1e6, burst=1e6, longest_wait_s=1.0))
        self._handlers: dict[str, tuple[StreamHandler, bool]] = {}
        self._serving: dict[ByteStream, Connection] = {}
        self._dialling: dict[str, trio.Lock] = {}
        self._bound: list[Address] = []
        self._reported_at = float("-inf")
        self._nursery: trio.Nursery | None = None
        #: The relays that this node uses, and its direct connections past them.
        self.reach = Reach(
            self, relays, allow_private=allow_private, punch=punch, now_s=now_s, random_bytes=random_bytes
        )
        self._serve_own(key, identify_strangers=identify_strangers)

    @property
    def peer_id(self) -> str:
        """Our own PeerId."""
        return self._peer_id

    def addresses(self) -> list[str]:
        """See `Transport.addresses`: what is announced, or else listened on without wildcards, and through relays."""
        return [address.without_peer for address in (*self.own_addresses(), *self.reach.relays.addresses())]

    def own_addresses(self) -> list[Address]:
        """Where this node itself can be dialled, without relays."""
        return self._announce or [address for address in self._bound if not address.is_wildcard]

    def protocols(self) -> list[str]:
        """What is served to members."""
        return list(self._handlers)

    def serve(self, protocol: str, handler: StreamHandler, *, strangers: bool = False) -> None:
        """See `Transport.serve`."""
        self._handlers[protocol] = handler, strangers

    def _serve_own(self, key: PrivateKey, *, identify_strangers: bool) -> None:
        identify = identify_handler(
            key.public_key,
            f"comity/{__version__}",
            addresses=lambda: [parse_address(text) for text in self.addresses()],
            protocols=self.protocols,
            observed=self._seen,
        )
        self.serve(IDENTIFY, identify, strangers=identify_strangers)
        self.serve(PING, serve_ping, strangers=identify_strangers)
        for protocol, handler in self.reach.handlers().items():
            self.serve(protocol, handler)

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Transport.run`."""
        listeners: list[trio.SocketListener] = []
        try:
            for address in self._listen:
                listeners += await _bind(address)
            self._bound = [ip_address(*each.socket.getsockname()[:2]) for each in listeners]
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if listeners:
                    await nursery.start(trio.serve_listeners, self._accept, listeners)
                nursery.start_soon(self.reach.relays.run)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            for listener in listeners:
                listener.socket.close()

    async def open_stream(
        self, peer_id: str, addresses: Sequence[str], protocol: str, *, priority: Priority = Priority.WORK
    ) -> ByteStream:
        """See `Transport.open_stream`."""
        return await self.open_on(await self._connection_to(peer_id, addresses), protocol, priority)

    async def open_on(self, connection: Connection, protocol: str, priority: Priority) -> ByteStream:
        """Open a stream on this connection and no other; see `Transport.open_stream`."""
        stream = connection.mux.open(priority)
        try:
            with trio.fail_after(self._limits.negotiate_s):
                return await propose(stream, protocol)
        except trio.TooSlowError as error:
            stream.reset()
            raise PeerUnreachable(f"{connection.peer_id} does not answer on its connection") from error
        except BaseException:  # also a cancellation leaves no stream behind; raised again
            stream.reset()
            raise

    def confirm(self, peer_id: str, organization: str = "") -> None:
        """See `Transport.confirm`."""
        self.connections.confirm(peer_id, organization)

    def connection_info(self, peer_id: str) -> ConnectionInfo | None:
        """See `Transport.connection_info`."""
        return self.connections.info(peer_id)

    def on_better_path(self, listener: Callable[[str], None]) -> None:
        """See `Transport.on_better_path`."""
        self.connections.on_better_path(listener)

    def counters(self) -> dict[str, int]:
        """What is connected now, and what was refused and upgraded since the start."""
        return {
            "connections": len(self.connections),
            "connections_relayed": sum(bool(each.relay) for each in self.connections),
            "connections_of_strangers": self.connections.strangers,
            "connections_unproved": self._arrivals.unproved,
            "unproved_evicted": self._arrivals.evicted,
            "handshakes_refused": self._arrivals.pace.refused,
            "unread_bytes_granted": self.connections.budgets.total.used,
            "relayed_upgraded": self.reach.puncher.upgraded,
            "relayed_not_upgraded": self.reach.puncher.failed,
        }

    async def disconnect(self, peer_id: str) -> None:
        """See `Transport.disconnect`; returns when the connections are gone."""
        self.connections.doubt(peer_id)
        connections = self.connections.of(peer_id)
        for connection in connections:
            connection.mux.close("the peer was disconnected")
        await trio.lowlevel.checkpoint()
        for connection in connections:
            await connection.mux.closed.wait()

    # Connections that come.

    async def _accept(self, socket: trio.SocketStream) -> None:
        await self._arrive(SocketRaw(socket), expected="", relay="")

    async def welcome(self, raw: RawStream, *, relay: str, peer_id: str) -> None:
        """Serve a connection that comes through a relay from (so the relay says) `peer_id`, until it ends."""
        await self._arrive(raw, expected=peer_id, relay=relay)

    async def _arrive(self, raw: RawStream, *, expected: str, relay: str) -> None:
        if len(self.connections) >= self._limits.max_connections:
            raw.abort()
            return
        try:
            mux = await self._arrivals.prove(raw, lambda paced: self._secure(paced, expected, initiator=False))
        except ComityError as error:
            _log.debug("an inbound connection failed: %s", error)
            return
        except Exception:  # noqa: BLE001
            # A bug that a stranger's bytes can reach must not stop the node for everybody else: reported here.
            self._report("an inbound connection")
            raw.abort()
            return
        if mux is not None:
            await self._carry(_connection(mux, raw, inbound=True, relay=relay))

    async def _secure(self, raw: RawStream, expected: str, *, initiator: bool) -> MuxedConnection:
        """Make the handshake; the peer must be `expected`, unless that is ""."""
        wire = Wire(raw, initiator=initiator, budget=self._limits.handshake_bytes)
        try:
            with trio.fail_after(self._limits.handshake_s):
                channel, peer_id = await self._upgrader.upgrade(wire, expected or None)
            if expected not in ("", peer_id):
                raise ProtocolError(f"found {peer_id} there instead of {expected}")
        except trio.TooSlowError as error:
            raw.abort()
            raise LinkClosed(f"the peer has not proved its key in {self._limits.handshake_s:g} s") from error
        except BaseException:  # also a cancellation leaves no socket behind; raised again
            raw.abort()
            raise
        limits = self._limits
        return MuxedConnection(
            channel, peer_id, initiator=initiator, limits=limits.stranger_mux, keep_alive=limits.keep_alive
        )

    async def _carry(self, connection: Connection, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The life of a connection that has proved its key."""
        self.connections.add(connection)
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.connections.cut_unconfirmed, connection)
                if connection.relay:
                    nursery.start_soon(self.connections.retire, connection)
                    nursery.start_soon(self.reach.tend, connection)
                await connection.mux.run(lambda stream: self._on_stream(connection, stream))
                nursery.cancel_scope.cancel()
        finally:
            self.connections.remove(connection)

    def _on_stream(self, connection: Connection, stream: MuxedStream) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(self._serve, connection, stream)

    async def _serve(self, connection: Connection, stream: MuxedStream) -> None:
        self._serving[stream] = connection
        is_member = self.connections.is_confirmed(stream.remote_peer)
        served = {name: handler for name, (handler, strangers) in self._handlers.items() if strangers or is_member}
        try:
            with trio.fail_after(self._limits.negotiate_s):
                protocol = await agree(stream, served)
            await served[protocol](stream)
        except (ComityError, trio.TooSlowError) as error:
            _log.debug("a stream of %s failed: %s", stream.remote_peer, error)
        except Exception:  # noqa: BLE001
            # A bug that a peer's bytes can reach must not stop the node for everybody else: reported here.
            self._report(f"a stream of {stream.remote_peer}")
        finally:
            del self._serving[stream]
            stream.reset()  # no effect if the handler has closed it

    def _report(self, what: str) -> None:
        """Log the exception that is being handled; its traceback now and then: a peer can repeat what caused it."""
        now = trio.current_time()
        if now - self._reported_at >= _REPORT_EVERY_S:
            self._reported_at = now
            _log.exception("%s failed on a mistake of ours; please report it", what)
        else:
            _log.debug("%s failed on a mistake of ours again", what, exc_info=True)

    # Connections that we make.

    async def _connection_to(self, peer_id: str, addresses: Sequence[str]) -> Connection:
        lock = self._dialling.setdefault(peer_id, trio.Lock())
        try:
            async with lock:
                return self.connections.best(peer_id) or await self.dial(peer_id, addresses)
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._dialling.pop(peer_id, None)

    async def dial(self, peer_id: str, addresses: Sequence[str]) -> Connection:
        """Make a connection to a peer, whether there is one or not.

        Raises:
            PeerUnreachable: no address answers.
            Busy: there are too many connections.
        """
        if len(self.connections) >= self._limits.max_connections:
            raise Busy(f"{len(self.connections)} connections are open")
        parsed = sorted(map(parse_address, addresses), key=lambda address: bool(address.relay))
        return await Race[RawStream, Connection](
            lambda address: self._reach(address, peer_id),
            lambda address, raw: self.establish(raw, peer_id, relay=address.relay),
        ).run(peer_id, parsed)

    async def _reach(self, address: Address, peer_id: str) -> RawStream:
        if address.peer_id not in ("", peer_id):
            raise PeerUnreachable(f"the address is that of {address.peer_id}")
        if address.relay:
            return await self.reach.relays.open_circuit(address, peer_id)
        return await open_socket(
            address,
            timeout_s=self._limits.dial_s,
            allow_own_machine=self._allow_private,
            allow_private=self._own_names is None or address.host in self._own_names,
        )

    async def establish(self, raw: RawStream, peer_id: str, *, relay: str = "", initiator: bool = True) -> Connection:
        """Secure a connection that was made, and begin its life; the peer must be `peer_id`.

        Raises:
            LinkClosed: it broke, or the transport does not run.
            ProtocolError: somebody else is there.
        """
        self._running()
        mux = await self._secure(raw, peer_id, initiator=initiator)
        connection = _connection(mux, raw, inbound=not initiator, relay=relay)
        try:
            nursery = self._running()  # it may have stopped meanwhile
        except LinkClosed:
            raw.abort()
            raise
        await nursery.start(self._carry, connection)
        return connection

    def _running(self) -> trio.Nursery:
        if self._nursery is None:
            raise LinkClosed("the transport is not running")
        return self._nursery

    def _seen(self, stream: ByteStream) -> Address | None:
        """Where we see the other end of a stream that is being served."""
        connection = self._serving.get(stream)
        return parse_address(connection.address) if connection is not None and connection.address else None


def _connection(mux: MuxedConnection, raw: RawStream, *, inbound: bool, relay: str) -> Connection:
    return Connection(
        mux,
        raw.remote_address,
        relay,
        inbound,
        opened_at=trio.current_time(),
        source=source_of(raw.remote_address),
        local_port=raw.local_port if isinstance(raw, DialledSocket) and not inbound else 0,
    )


def _listen_address(text: str) -> Address:
    address = parse_address(text)
    if address.kind not in ("ip4", "ip6") or address.relay:
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
