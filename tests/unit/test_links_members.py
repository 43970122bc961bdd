"""Members that turn bad: what they have opened ends with their membership, and what they break stops nothing else."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
import trio
from trio.testing import MockClock

from comity.errors import Busy, LinkClosed, PeerNotAttested, PeerRefused, PeerUnreachable
from comity.trust import Attested, NodeIdentity, TrustStore
from comity_node.links import LinkLimits, Links
from comity_node.links.channel import Channel
from comity_node.links.greeting import Greeter, greet_as_opener
from comity_node.links.lane import MESSAGES
from comity_node.links.state import Counters
from comity_node.links.tunnels import TUNNEL, ask_for_tunnel
from comity_node.protocol.session import Session
from comity_node.protocol.session_events import GoingAway
from comity_node.protocol.session_states import Role, Service
from comity_node.transport.base import ByteStream, Priority
from comity_node.transport.memory import MemoryNetwork, MemoryTransport
from kit.consortium import attested, consortium
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

    @property
    def greeter(self) -> Greeter:
        return Greeter(self.rogue, TrustStore(self.trust.bundle), list, now_ms, allow_private=False)

    async def channel(self, protocol: str) -> Channel:
        stream = await self.there.open_stream(self.links.peer_id, (), protocol)
        service = Service.TUNNEL if protocol == TUNNEL else Service.MESSAGES
        return Channel(stream, Session(Role.OPENER, service), Counters(), send_buffer=1 << 20)

    async def tunnel(self) -> ByteStream:
        channel = await self.channel(TUNNEL)
        assert await ask_for_tunnel(channel, self.greeter, "bulk", Priority.BULK) == b""
        return channel.stream


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
            assert at.here.confirmed == []
            stream = await at.tunnel()
            assert at.here.confirmed == [at.rogue.peer_id]
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
@pytest.mark.parametrize("protocol", [TUNNEL, MESSAGES])
def test_who_opens_a_stream_and_says_nothing_is_cut(protocol: str) -> None:
    async def main() -> None:
        async with scene(echoes) as at:
            channel, limits = await at.channel(protocol), LinkLimits()
            with trio.fail_after(limits.attest_s + 1), pytest.raises(LinkClosed):
                await channel.next_event()
            await trio.sleep(2)  # for the farewell
            assert at.here.disconnected == [at.rogue.peer_id]

    run(main)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize(("protocol", "within_s"), [(TUNNEL, LinkLimits().attest_s), (MESSAGES, LinkLimits().idle_s)])
def test_who_attests_itself_and_asks_for_nothing_keeps_no_stream(protocol: str, within_s: float) -> None:
    async def main() -> None:
        async with scene(echoes) as at:
            channel = await at.channel(protocol)
            priority = Priority.BULK if protocol == TUNNEL else Priority.WORK
            await greet_as_opener(channel, at.greeter, priority, calls=protocol == MESSAGES)
            with trio.fail_after(within_s + 5), pytest.raises(LinkClosed):
                await only_farewells(channel)

    run(main)


async def only_farewells(channel: Channel) -> None:
    while True:
        assert isinstance(await channel.next_event(), GoingAway)


@pytest.mark.invariant("S7")
def test_who_is_asked_for_a_tunnel_and_says_nothing_holds_nobody_up() -> None:
    async def silence(_: ByteStream) -> None:
        await trio.sleep_forever()

    async def main() -> None:
        async with scene(echoes, LinkLimits(max_tunnels=1)) as at:
            at.there.serve(TUNNEL, silence)
            at.links.add_peer(at.rogue.peer_id)
            for _ in range(2):  # the place is free again
                with trio.fail_after(15), pytest.raises(PeerUnreachable, match="has not opened the tunnel"):
                    await at.links.open_tunnel(at.rogue.peer_id, "bulk")

    run(main)


@pytest.mark.invariant("S2")
def test_a_node_does_not_take_itself_for_another_member() -> None:
    async def main() -> None:
        async with scene(echoes) as at:
            own = consortium(MERCY, STLUKES, HOPE).nodes[MERCY]
            with pytest.raises(PeerNotAttested, match="with itself"):
                await replace(at, rogue=own, there=at.here).tunnel()

    run(main)


@pytest.mark.invariant("R5")
def test_a_node_on_its_way_down_takes_no_new_stream() -> None:
    async def main() -> None:
        async with scene(echoes) as at:
            await (await at.tunnel()).aclose()
            await at.links.drain(1)
            with pytest.raises(Busy, match="shutting down"):
                await at.tunnel()

    run(main)


@pytest.mark.invariant("S7")
def test_a_request_s_handler_that_breaks_stops_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(_: Attested, payload: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return {b"known": b"answer"}[payload]

    async def main() -> None:
        async with linked(answer) as pair:
            with pytest.raises(PeerRefused, match="internal error"):
                await pair.ask(b"something else")
            assert await pair.ask(b"known") == b"answer"

    run(main)
    assert sum("something else" in record.exc_text for record in caplog.records if record.exc_text) == 1


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


def test_a_member_is_one_of_its_nodes_while_the_link_is_up() -> None:
    async def main() -> None:
        async with linked() as pair:
            assert pair.a.member(STLUKES) == attested(consortium(MERCY, STLUKES).nodes[STLUKES])
            assert pair.a.members(STLUKES) == [pair.a.member(STLUKES)]
            assert pair.a.member(MERCY) is None
            assert pair.a.members(MERCY) == []
            pair.network.partition(pair.a.peer_id, pair.b.peer_id)
            await trio.sleep(60)
            assert pair.a.member(STLUKES) is None

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
