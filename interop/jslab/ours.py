"""Nodes of ours as the checks need them: open to strangers, and told who is to count as attested."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from comity.ids import SpiffeId
from comity.signing import PrivateKey
from comity.trust import Attested
from comity_node.transport.address import Address, parse_address
from comity_node.transport.base import ByteStream
from comity_node.transport.libp2p_transport import Libp2pTransport
from comity_node.transport.pace import Pace
from comity_node.transport.relay_service import RelayService
from comity_node.transport.upgrade import Upgrader
from kit.relayed import LOOPBACK, TappedCarrier, allow_all

ECHO: Final = "/interop/echo/1"
#: How the protocols are called on the wire.
WIRE_NAMES: Final = {"noise": "/noise", "tls": "/tls/1.0.0"}
YAMUX: Final = "/yamux/1.0.0"
_PIECE: Final = 64 * 1024
#: The whole of one check.
PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Echoed:
    """A stream that was echoed: from whom, how many bytes, and their SHA-256 digest."""

    peer_id: str
    count: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Carried:
    """A relay of ours, and all bytes that have passed through it."""

    service: RelayService
    seen: bytearray


class Node:
    """One of ours."""

    def __init__(
        self,
        *,
        security: Sequence[str] = ("noise", "tls"),
        listen: Sequence[str] = (LOOPBACK,),
        relays: Sequence[str] = (),
    ) -> None:
        """Make it; `run` starts it.

        Args:
            security: what it speaks, the best first.
            listen: multiaddrs.
            relays: through which it wants to be reached.
        """
        self.key = PrivateKey.generate()
        self._relays = [parse_address(each) for each in relays]
        upgrader = Upgrader(self.key, Pace(1000, burst=1000, longest_wait_s=5), security=security)
        self.transport = Libp2pTransport(
            self.key, listen, relays=relays, upgrader=upgrader, identify_strangers=True, punch=None
        )
        self.transport.serve(ECHO, self._echo, strangers=True)
        self.transport.reach.relays.link_with = self._link_with
        self._echoed: list[Echoed] = []
        self._news = trio.lowlevel.ParkingLot()
        self._strangers: set[str] = set()

    @property
    def peer_id(self) -> str:
        """Its PeerId."""
        return self.transport.peer_id

    @property
    def url(self) -> str:
        """Where it listens, with its PeerId."""
        return f"{self.transport.own_addresses()[0]}/p2p/{self.peer_id}"

    def refuse(self, peer_id: str) -> None:
        """Let a peer stay a stranger; all others count as attested as soon as they are connected.

        js-libp2p knows nothing of attestation, and strangers are served little and not for long.
        """
        self._strangers.add(peer_id)

    def admit(self, peer_id: str) -> None:
        """Count a peer as attested that was refused before."""
        self._strangers.remove(peer_id)
        self.transport.connections.changed()

    async def run(self, nursery: trio.Nursery) -> None:
        """Start it, and connect it with its relays."""
        await nursery.start(self.transport.run)
        nursery.start_soon(self._confirm)
        for each in self._relays:
            await self._link_with(each)

    async def _confirm(self) -> None:
        connections = self.transport.connections

        def new() -> set[str]:
            return {
                each.peer_id for each in connections if not connections.is_confirmed(each.peer_id)
            } - self._strangers

        while True:
            await connections.until(lambda: bool(new()))
            for each in new():
                self.transport.confirm(each, _organization(each))

    async def _link_with(self, relay: Address, timeout_s: float = PATIENCE_S) -> None:
        connections = self.transport.connections
        with trio.fail_after(timeout_s):
            await self.transport.dial(relay.peer_id, [str(relay)])
            await connections.until(lambda: connections.is_confirmed(relay.peer_id))

    async def reachable(self) -> str:
        """Wait until it can be reached through a relay; returns that address, with its PeerId."""
        relays = self.transport.reach.relays
        await self.transport.connections.until(lambda: bool(relays.addresses()))
        return f"{relays.addresses()[0].without_peer}/p2p/{self.peer_id}"

    def offer_relay(self) -> Carried:
        """Carry for whoever counts as attested; before `run`."""
        connections, carrier = self.transport.connections, TappedCarrier(self.transport)

        def attested(peer_id: str) -> Attested | None:
            if not connections.is_confirmed(peer_id):
                return None
            organization = _organization(peer_id)
            return Attested(organization, SpiffeId(organization, "node", "n1"), b"", peer_id)

        service = RelayService(
            carrier,
            self.key,
            attested=attested,
            allow=allow_all,
            addresses=self.transport.own_addresses,
            now_s=lambda: int(time.time()),
        )
        return Carried(service, carrier.seen)

    async def _echo(self, stream: ByteStream) -> None:
        digest, count = hashlib.sha256(), 0
        while data := await stream.receive():
            digest.update(data)
            count += len(data)
            await stream.send(data)
        await stream.aclose()
        self._echoed.append(Echoed(stream.remote_peer, count, digest.hexdigest()))
        self._news.unpark_all()

    async def echoed(self, count: int = 1) -> list[Echoed]:
        """Wait until so many streams were echoed to their end; returns them all."""
        while len(self._echoed) < count:
            await self._news.park()
        return self._echoed

    async def echo(self, peer_id: str, addresses: Sequence[str], count: int) -> str:
        """Have a peer echo so many random bytes, and check that they come back; returns their SHA-256 digest."""
        stream = await self.transport.open_stream(peer_id, addresses, ECHO)
        sent, back, received = hashlib.sha256(), hashlib.sha256(), 0

        async def send() -> None:
            for done in range(0, count, _PIECE):
                piece = os.urandom(min(_PIECE, count - done))
                sent.update(piece)
                await stream.send(piece)
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while data := await stream.receive():
                back.update(data)
                received += len(data)
        await stream.aclose()
        assert received == count
        assert back.digest() == sent.digest()
        return back.hexdigest()


def _organization(peer_id: str) -> str:
    """Everybody is of an organization of his own."""
    return f"{peer_id[-8:].lower()}.example"


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[trio.Nursery]:
    """Run nodes for as long as the block takes, which is `PATIENCE_S` at most."""
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for each in nodes:
                await each.run(nursery)
            yield nursery
            nursery.cancel_scope.cancel()
