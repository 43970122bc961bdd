"""The tunnels of a node: which are served, which are open, and the policy's word on each."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from comity.errors import AgreementError, ComityError, ConfigError, PeerUnreachable
from comity.trust import Attested
from comity_node.admission import Gate, Question
from comity_node.links import Links
from comity_node.policy.model import Request
from comity_node.runtime.messenger import Peers
from comity_node.storage import audit
from comity_node.storage.database import Database
from comity_node.transport.base import ByteStream, Priority
from comity_node.tunnel import FILTER, FleetEntry, FleetExit, StartedStatus, TunnelEvent

log = logging.getLogger(__name__)

#: Serves a stream of an attested peer until it is over.
Serve = Callable[[Attested, ByteStream], Awaitable[None]]

_MAX_TUNNELS = 16


@dataclass(slots=True, eq=False)
class _Open:
    """A stream through a tunnel, while it is open; `scope` ends what serves it."""

    request: Request
    stream: ByteStream
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class _Watched:
    """A stream that is known to be open until it is closed or reset (`ByteStream`)."""

    def __init__(self, stream: ByteStream, over: Callable[[], None]) -> None:
        self._stream, self._over = stream, over

    @property
    def remote_peer(self) -> str:
        """See `ByteStream.remote_peer`."""
        return self._stream.remote_peer

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """See `ByteStream.receive`."""
        return await self._stream.receive(max_bytes)

    async def send(self, data: bytes) -> None:
        """See `ByteStream.send`."""
        await self._stream.send(data)

    async def send_eof(self) -> None:
        """See `ByteStream.send_eof`."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """See `ByteStream.aclose`."""
        try:
            await self._stream.aclose()
        finally:
            self._over()

    def reset(self) -> None:
        """See `ByteStream.reset`."""
        self._over()
        self._stream.reset()

    def set_priority(self, priority: Priority) -> None:
        """See `ByteStream.set_priority`."""
        self._stream.set_priority(priority)


class TunnelManager:
    """Entries and exits of one node. Each stream is decided on by the policy when it opens."""

    def __init__(self, *, gate: Gate, links: Links, peers: Peers, database: Database, nursery: trio.Nursery) -> None:
        """Manage the tunnels over `links`; entries run in `nursery`."""
        self._gate = gate
        self._links = links
        self._peers = peers
        self._database = database
        self._nursery = nursery
        self._exits: dict[str, FleetExit] = {}
        self._entries = 0
        self._fixed: dict[str, Serve] = {}
        self._open: set[_Open] = set()
        links.on_tunnel(self.serve_peer)

    def always(self, name: str, serve: Serve) -> None:
        """Serve a protocol of the node's own under `name`, which is asked for like a tunnel; it decides by itself."""
        self._fixed[name] = serve

    async def serve(self, name: str, target: str, kind: str) -> None:
        """Serve the SuperLink at `target` (host:port on loopback) under `name`; serving it again replaces it.

        Raises:
            ConfigError: an unknown filter, a target beyond loopback, or too many tunnels.
        """
        if kind != FILTER:
            raise ConfigError(f"{kind!r} is not a tunnel filter; there is {FILTER!r}")
        if name in self._fixed:
            raise ConfigError(f"{name!r} is the node's own; choose another name")
        if name not in self._exits and len(self._exits) >= _MAX_TUNNELS:
            raise ConfigError(f"{_MAX_TUNNELS} tunnels are served already")
        self._exits[name] = FleetExit(name, target, on_event=self._on_event)

    async def open(self, name: str, organization: str, port: int, app_digests: tuple[str, ...]) -> int:
        """Listen on loopback for the tunnel `name` of `organization`; returns the port.

        Raises:
            PolicyDenied: the policy does not let it.
            ConfigError: the port is taken, or too many tunnels are open.
        """
        if not 0 <= port < 65536:
            raise ConfigError(f"{port} is no port: choose one from 1 to 65535, or 0 for any that is free")
        await self._demand_open(name, organization)

        async def open_stream() -> ByteStream:
            await self._demand_open(name, organization)
            peer = self._peers.peer(organization)
            if peer is None:
                raise PeerUnreachable(f"no node of {organization} is linked")
            opened = _Open(
                _request("tunnel.open", organization, name), await self._links.open_tunnel(peer.peer_id, name)
            )
            self._open.add(opened)
            await self.look_again()  # the policy may have changed while the peer was asked
            return _Watched(opened.stream, lambda: self._open.discard(opened))

        entry = FleetEntry(name, organization, open_stream, app_digests=app_digests, on_event=self._on_event, port=port)
        bound: int = await self._nursery.start(self._run_entry, entry)
        log.info("tunnel %r to %s on 127.0.0.1:%d", name, organization, bound)
        return bound

    async def _run_entry(self, entry: FleetEntry, *, task_status: StartedStatus) -> None:
        """An entry counts from here until it ends, which it does at once if it cannot listen."""
        if self._entries >= _MAX_TUNNELS:
            raise ConfigError(f"{_MAX_TUNNELS} tunnels are open already")
        self._entries += 1
        try:
            await entry.run(task_status=task_status)
        finally:
            self._entries -= 1

    async def _demand_open(self, name: str, organization: str) -> None:
        await self._gate.demand(Question(_request("tunnel.open", organization, name)))

    async def serve_peer(self, sender: Attested, name: str, stream: ByteStream) -> None:
        """Serve a tunnel that a peer asks for.

        Raises:
            AgreementError: no tunnel of this name is served.
            PolicyDenied: the policy does not let the peer use it.
        """
        if fixed := self._fixed.get(name):
            await fixed(sender, stream)
            return
        server = self._exits.get(name)
        if server is None:
            raise AgreementError(f"no tunnel {name!r} is served here")
        request = _request("tunnel.serve", sender.organization, name)
        await self._gate.demand(Question(request))
        opened = _Open(request, stream)
        self._open.add(opened)
        try:
            with opened.scope:
                await server.handle(sender, stream)
        except ComityError as error:
            log.info("the tunnel %r of %s ended: %s", name, sender.organization, error)
        finally:
            self._open.discard(opened)

    async def look_again(self) -> None:
        """Cut the tunnels that the policy of now does not let be open; the decision is in the audit log before."""
        for opened in list(self._open):
            if self._gate.consider(opened.request).allowed:
                continue
            try:
                await self._gate.demand(Question(opened.request))
            except ComityError as error:  # of the policy, or of the audit log: without an entry it does not stay open
                log.warning("a tunnel with %s is cut: %s", opened.request.organization, error)
                self._open.discard(opened)
                opened.scope.cancel()
                opened.stream.reset()

    async def _on_event(self, event: TunnelEvent) -> None:
        now_ms = self._gate.now_ms()
        entry = audit.AuditEntry(
            kind="effect",
            action=f"tunnel.{event.kind}",
            decision="deny" if event.kind == "refused" else "allow",
            peer=event.organization,
            detail={"tunnel": event.tunnel, "call": event.call, "code": event.code, "reason": event.reason},
        )
        await self._database.transact(lambda c: audit.append(c, entry, now_ms))


def _request(action: str, organization: str, name: str) -> Request:
    return Request(action=action, organization=organization, labels={"tunnel": name})
