"""Members that turn bad: what they have opened ends with their membership, and what they break stops nothing else."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
from trio.testing import MockClock

from comity.errors import LinkClosed
from comity.trust import Attested, NodeIdentity, TrustStore
from comity_node.links import LinkLimits, Links
from comity_node.links.channel import Channel
from comity_node.links.greeting import Greeter
from comity_node.links.state import Counters
from comity_node.links.tunnels import TUNNEL, ask_for_tunnel
from comity_node.protocol.session import Session
from comity_node.protocol.session_states import Role, Service
from comity_node.transport.base import ByteStream, Priority
from comity_node.transport.memory import MemoryNetwork, MemoryTransport
from kit.consortium import consortium
from kit.linked import linked

MERCY, STLUKES, HOPE = "mercy.example", "stlukes.example", "hope.example"


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def echo(_: Attested, payload: bytes) -> bytes:
    return payload


@dataclass(frozen=True)
class Scene:
    """A node (`links`), and a member whose node opens tunnels to it and nothing else, and answers nobody."""

    links: Links
    here: MemoryTransport
    trust: TrustStore
    rogue: NodeIdentity
    there: MemoryTransport
    network: MemoryNetwork

    async def tunnel(self) -> ByteStream:
        stream = await self.there.open_stream(self.links.peer_id, (), TUNNEL)
        channel = Channel(stream, Session(Role.OPENER, Service.TUNNEL), Counters(), send_buffer=1 << 20)
        greeter = Greeter(self.rogue, TrustStore(self.trust.bundle), list, now_ms, allow_private=False)
        assert await ask_for_tunnel(channel, greeter, "bulk", Priority.BULK) == b""
        return stream


@asynccontextmanager
async def scene(
    serve: Callable[[Attested, str, ByteStream], Awaitable[None]], limits: LinkLimits | None = None
) -> AsyncIterator[Scene]:
    world, network = consortium(MERCY, STLUKES, HOPE), MemoryNetwork()
    trust, own, rogue = TrustStore(world.trust.bundle), world.nodes[MERCY], world.nodes[STLUKES]
    here, there = network.transport(own.peer_id), network.transport(rogue.peer_id)
    links = Links(here, own, trust, echo, now_ms=now_ms, random_bytes=bytes, on_tunnel=serve, limits=limits)
    async with trio.open_nursery() as nursery:
        await nursery.start(links.run)
        await nursery.start(there.run)
        yield Scene(links, here, trust, rogue, there, network)
        nursery.cancel_scope.cancel()


async def echoes(_: Attested, __: str, stream: ByteStream) -> None:
    while data := await stream.receive():
        await stream.send(data)


@pytest.mark.invariant("S2")
def test_a_revoked_member_that_has_nothing_but_a_tunnel_is_cut_off_too() -> None:
    async def main() -> None:
        async with scene(echoes) as at:
            stream = await at.tunnel()
            await stream.send(b"still here")
            assert await stream.receive() == b"still here"
            await trio.sleep(60)  # nobody cuts a member that is in order
            await stream.send(b"and here")
            assert await stream.receive() == b"and here"
            at.trust.revoke(at.rogue.chain[0], 0)
            with trio.fail_after(2 * LinkLimits().ping_every_s), pytest.raises(LinkClosed):
                await stream.receive()

    run(main)


@pytest.mark.invariant("S7")
def test_a_tunnel_s_handler_that_breaks_stops_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async def breaks(_: Attested, name: str, stream: ByteStream) -> None:
        await stream.receive(1)
        raise KeyError("something that a peer sent")

    async def main() -> None:
        async with scene(breaks) as at:
            for _ in range(2):
                stream = await at.tunnel()
                await stream.send(b"x")
                with pytest.raises(LinkClosed):
                    await stream.receive()

    run(main)
    assert sum("something that a peer sent" in record.exc_text for record in caplog.records if record.exc_text) == 2


@pytest.mark.invariant("S7")
def test_the_transport_is_told_whose_nodes_are_there_so_that_they_share_their_organizations_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: set[tuple[str, str]] = set()
    monkeypatch.setattr(
        MemoryTransport, "confirm", lambda _, peer_id, organization="": told.add((peer_id, organization))
    )

    async def main() -> None:
        async with linked() as pair:
            await pair.ask(b"hello")
            assert told == {(pair.a.peer_id, MERCY), (pair.b.peer_id, STLUKES)}

    run(main)


@pytest.mark.invariant("S7")
def test_a_peer_that_is_forgotten_loses_its_connection() -> None:
    """It would stay attested for the transport, and nobody would look at its certificate again."""

    async def main() -> None:
        async with scene(echoes, LinkLimits(max_peers=1, forget_after_s=60)) as at:
            stream = await at.tunnel()
            await stream.aclose()
            await trio.sleep(100)
            assert at.here.disconnected == []
            newcomer = consortium(MERCY, STLUKES, HOPE).nodes[HOPE]
            other = Links(
                at.network.transport(newcomer.peer_id), newcomer, at.trust, echo, now_ms=now_ms, random_bytes=bytes
            )
            async with trio.open_nursery() as nursery:
                await nursery.start(other.run)
                other.add_peer(at.links.peer_id)
                await at.links.wait_for(other.peer_id, 60)
                assert [state.peer_id for state in at.links.peers()] == [other.peer_id]
                assert at.here.disconnected == [at.rogue.peer_id]
                nursery.cancel_scope.cancel()

    run(main)
