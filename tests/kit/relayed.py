"""Members with real sockets, certificates and links, some of which listen on nothing and are reached through relays."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from comity.ids import SpiffeId
from comity.trust import Attested, NodeIdentity, TrustStore
from comity_node.links import Links
from comity_node.transport.address import Address, parse_address
from comity_node.transport.base import ByteStream, ConnectionInfo, Priority, StreamHandler
from comity_node.transport.dcutr import PunchLimits
from comity_node.transport.libp2p_transport import Libp2pLimits, Libp2pTransport
from comity_node.transport.relay_limits import RelayLimits
from comity_node.transport.relay_service import RelayService
from kit.consortium import Consortium

if TYPE_CHECKING:
    from trio_typing import TaskStatus

MERCY, STLUKES, HOPE = "mercy.example", "stlukes.example", "hope.example"
LOOPBACK = "/ip4/127.0.0.1/tcp/0"


async def allow_all(_: Attested, __: Attested | None) -> None:
    await trio.lowlevel.checkpoint()


class Tap:
    """A stream whose bytes are noted."""

    def __init__(self, stream: ByteStream, seen: bytearray) -> None:
        self._stream, self._seen = stream, seen

    @property
    def remote_peer(self) -> str:
        return self._stream.remote_peer

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = await self._stream.receive(max_bytes)
        self._seen += data
        return data

    async def send(self, data: bytes) -> None:
        self._seen += data
        await self._stream.send(data)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def reset(self) -> None:
        self._stream.reset()

    def set_priority(self, priority: Priority) -> None:
        self._stream.set_priority(priority)


@dataclass
class TappedCarrier:
    """The relay's transport, with everything that passes through the relay noted."""

    transport: Libp2pTransport
    seen: bytearray = field(default_factory=bytearray)

    def serve(self, protocol: str, handler: StreamHandler, *, strangers: bool = False) -> None:
        async def tapped(stream: ByteStream) -> None:
            await handler(Tap(stream, self.seen))

        self.transport.serve(protocol, tapped, strangers=strangers)

    def connection_info(self, peer_id: str) -> ConnectionInfo | None:
        return self.transport.connection_info(peer_id)

    async def open_stream(
        self, peer_id: str, addresses: Sequence[str], protocol: str, *, priority: Priority = Priority.WORK
    ) -> ByteStream:
        stream = await self.transport.open_stream(peer_id, addresses, protocol, priority=priority)
        return Tap(stream, self.seen)


@dataclass
class Member:
    """One node: its transport and its links."""

    transport: Libp2pTransport
    links: Links

    @property
    def peer_id(self) -> str:
        return self.transport.peer_id

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await self.links.run(task_status=task_status)

    def attested(self, peer_id: str) -> Attested | None:
        state = self.links.state(peer_id)
        if state is None or not state.organization:
            return None
        return Attested(state.organization, SpiffeId.parse(state.node), b"", peer_id)


def member(
    identity: NodeIdentity,
    trust: TrustStore,
    *,
    listen: Sequence[str] = (),
    relays: Sequence[str] = (),
    limits: Libp2pLimits | None = None,
    punch: PunchLimits | None = None,
) -> Member:
    async def on_request(_: Attested, payload: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return payload[::-1]

    transport = Libp2pTransport(identity.key, listen, relays=relays, limits=limits, punch=punch)
    links = Links(
        transport,
        identity,
        trust,
        on_request,
        now_ms=lambda: time.time_ns() // 1_000_000,
        random_bytes=os.urandom,
        allow_private=True,
    )

    async def link_with(relay: Address, timeout_s: float) -> None:
        links.add_peer(relay.peer_id, [str(relay)])
        await links.wait_for(relay.peer_id, timeout_s)

    transport.reach.relays.link_with = link_with
    for each in relays:
        links.add_peer(parse_address(each).peer_id, [each], keep=True)
    return Member(transport, links)


def relaying(
    node: Member,
    identity: NodeIdentity,
    *,
    limits: RelayLimits | None = None,
    allow: Callable[[Attested, Attested | None], Awaitable[None]] = allow_all,
) -> tuple[RelayService, bytearray]:
    carrier = TappedCarrier(node.transport)
    service = RelayService(
        carrier,
        identity.key,
        attested=node.attested,
        allow=allow,
        addresses=node.transport.own_addresses,
        now_s=lambda: int(time.time()),
        limits=limits,
    )
    return service, carrier.seen


@asynccontextmanager
async def running(*members: Member) -> AsyncIterator[trio.Nursery]:
    with trio.fail_after(25):
        async with trio.open_nursery() as nursery:
            for each in members:
                await nursery.start(each.run)
            yield nursery
            nursery.cancel_scope.cancel()


async def reachable(node: Member) -> str:
    """Wait until a node has an address, which is one through its relay."""
    await node.transport.connections.until(lambda: bool(node.transport.reach.relays.addresses()))
    [address] = node.links.addresses()
    return address


def of(names: Consortium, *organizations: str) -> list[NodeIdentity]:
    return [names.nodes[each] for each in organizations]


def url(node: Member) -> str:
    return f"{node.transport.own_addresses()[0]}/p2p/{node.peer_id}"


async def answer(transport: Libp2pTransport, peer_id: str, addresses: Sequence[str], protocol: str) -> bytes:
    """What a peer first says on a new stream."""
    stream = await transport.open_stream(peer_id, addresses, protocol)
    return await stream.receive()
