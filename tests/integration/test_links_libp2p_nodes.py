"""Links over real libp2p sockets on loopback, with real certificates."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from comity.errors import ConfigError, LinkClosed, PeerUnreachable
from comity.trust import Attested, NodeIdentity, TrustStore
from comity_node.links import LinkLimits, Links
from comity_node.links.outbound import MESSAGES
from comity_node.protocol.session import Session
from comity_node.protocol.session_events import HelloReceived
from comity_node.protocol.session_states import Role, Service
from comity_node.transport.base import ByteStream
from comity_node.transport.libp2p_transport import Libp2pLimits, Libp2pTransport
from kit.relayed import answer

Consortium = Callable[..., tuple[TrustStore, dict[str, NodeIdentity]]]
MERCY, STLUKES, HOPE = "mercy.example", "stlukes.example", "hope.example"
LOOPBACK = "/ip4/127.0.0.1/tcp/0"


async def echo(_: Attested, payload: bytes) -> bytes:
    return payload


def node(
    identity: NodeIdentity,
    trust: TrustStore,
    on_request: Callable[[Attested, bytes], Awaitable[bytes]] = echo,
    *,
    listen: str = LOOPBACK,
    transport_limits: Libp2pLimits | None = None,
    **rest: Any,
) -> Links:
    return Links(
        Libp2pTransport(identity.key, [listen], limits=transport_limits),
        identity,
        trust,
        on_request,
        now_ms=lambda: time.time_ns() // 1_000_000,
        random_bytes=os.urandom,
        **rest,
    )


@asynccontextmanager
async def running(*links: Links) -> AsyncIterator[trio.Nursery]:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for each in links:
                await nursery.start(each.run)
            yield nursery
            nursery.cancel_scope.cancel()


async def until(links: Links, condition: Callable[[], bool]) -> None:
    while True:
        version = links.changes.version
        if condition():
            return
        await links.changes.wait(version)


async def linked(a: Links, b: Links) -> None:
    a.add_peer(b.peer_id, b.addresses())
    await a.wait_for(b.peer_id, 30)


def test_two_nodes_link_and_exchange_requests_both_ways(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES)
    done = 0

    async def main() -> None:
        nonlocal done
        a, b = node(nodes[MERCY], trust), node(nodes[STLUKES], trust)

        async def ask(source: Links, target: Links, count: int) -> None:
            nonlocal done
            for number in range(count):
                payload = number.to_bytes(4, "big") * 256
                assert await source.request(target.peer_id, payload, 30) == payload
                done += 1

        async with running(a, b):
            await linked(a, b)
            await b.wait_for(a.peer_id, 30)
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(ask, a, b, 125)
                    nursery.start_soon(ask, b, a, 125)
            large = os.urandom(4 * 1024 * 1024)
            assert await a.request(b.peer_id, large, 30) == large
            state = a.state(b.peer_id)
            assert state is not None
            assert state.organization == STLUKES
            assert state.reconnects == 0
            assert 0 < state.round_trip_ms < 5000

    trio.run(main)
    assert done == 2000


@pytest.mark.invariant("S2")
@pytest.mark.invariant("S7")
def test_a_foreign_node_is_cut_before_any_other_protocol_answers(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY)
    foreign_trust, foreign = consortium(STLUKES)
    lying = TrustStore(replace(trust.bundle, members={**trust.bundle.members, **foreign_trust.bundle.members}))
    requests: list[bytes] = []

    async def count(_: Attested, payload: bytes) -> bytes:
        requests.append(payload)
        return b""

    async def main() -> None:
        member = node(nodes[MERCY], trust, count)
        stranger = node(foreign[STLUKES], lying)
        # A node that opens streams for what every stock libp2p host answers, and says no Hello.
        prober = Libp2pTransport(foreign[STLUKES].key, [])
        async with running(member, stranger) as nursery:
            stranger.add_peer(member.peer_id, member.addresses())
            await until(stranger, lambda: (s := stranger.state(member.peer_id)) is not None and s.state == "down")
            state = stranger.state(member.peer_id)
            assert state is not None
            assert "chain_invalid" in state.reason
            assert "stlukes.example is no member" in state.reason
            await nursery.start(prober.run)
            for protocol in ("/ipfs/id/1.0.0", "/ipfs/ping/1.0.0", "/ipfs/id/push/1.0.0", "/perf/1.0.0"):
                with pytest.raises(PeerUnreachable, match="does not speak"):
                    await answer(prober, member.peer_id, member.addresses(), protocol)
            assert member.peers() == []

    trio.run(main)
    assert requests == []


@pytest.mark.invariant("S7")
def test_a_peer_that_does_not_attest_itself_in_time_is_cut(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES)

    async def main() -> None:
        member = node(
            nodes[MERCY],
            trust,
            transport_limits=Libp2pLimits(confirm_s=0.5),
            limits=LinkLimits(attest_s=0.5),
        )
        silent = Libp2pTransport(nodes[STLUKES].key, [])
        async with running(member) as nursery:
            await nursery.start(silent.run)
            # With a stream on which no Hello comes, and with no stream at all.
            stream = await silent.open_stream(member.peer_id, member.addresses(), MESSAGES)
            assert await _until_cut(stream) == b""
            with pytest.raises(PeerUnreachable):
                await answer(silent, member.peer_id, member.addresses(), "/nothing/1")
            [connection] = silent.connections.of(member.peer_id)
            await connection.mux.closed.wait()

    trio.run(main)


def test_another_epoch_is_refused_with_the_reason(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES)

    async def main() -> None:
        a = node(nodes[MERCY], trust)
        b = node(nodes[STLUKES], TrustStore(replace(trust.bundle, epoch=3)))
        async with running(a, b):
            b.add_peer(a.peer_id, a.addresses())
            await until(b, lambda: (s := b.state(a.peer_id)) is not None and s.state == "down")
            state = b.state(a.peer_id)
            assert state is not None
            assert "wrong_epoch" in state.reason
            assert "epoch 3; this node's is of epoch 1" in state.reason

    trio.run(main)


@pytest.mark.invariant("R3")
def test_the_link_comes_back_when_the_peer_restarts_on_the_same_port(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES)

    async def main() -> None:
        a, b = node(nodes[MERCY], trust), node(nodes[STLUKES], trust)
        async with running(a) as nursery:
            async with trio.open_nursery() as life:
                await life.start(b.run)
                [address] = b.addresses()
                await linked(a, b)
                assert await a.request(b.peer_id, b"one", 10) == b"one"
                life.cancel_scope.cancel()
            await until(a, lambda: (s := a.state(b.peer_id)) is not None and s.state != "connected")
            again = node(nodes[STLUKES], trust, listen=address)
            await nursery.start(again.run)
            state = await a.wait_for(b.peer_id, 30)
            assert state.reconnects == 1
            assert await a.request(b.peer_id, b"two", 10) == b"two"

    trio.run(main)


@pytest.mark.invariant("S7")
def test_an_oversized_frame_closes_that_stream_only(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES, HOPE)

    async def main() -> None:
        member, other = node(nodes[MERCY], trust), node(nodes[HOPE], trust)
        rogue = Libp2pTransport(nodes[STLUKES].key, [])
        hello = node(nodes[STLUKES], trust)._greeter.hello()
        async with running(member, other) as nursery:
            await nursery.start(rogue.run)
            await linked(other, member)
            bad, good = [await _greeted(rogue, member, hello) for _ in range(2)]
            await bad.send(b"\xff\xff\xff\xff")
            said = b""
            while data := await bad.receive():
                said += data
            assert b"frame_too_large" in said
            # The other stream of the same connection, and other peers, are as they were.
            number, milliseconds = (1).to_bytes(8, "big"), (9000).to_bytes(4, "big")
            await good.send((17).to_bytes(4, "big") + b"\x03" + number + milliseconds + b"ping")
            assert (await good.receive())[-4:] == b"ping"
            assert await other.request(member.peer_id, b"still there", 10) == b"still there"

    trio.run(main)


async def _greeted(rogue: Libp2pTransport, member: Links, hello: bytes) -> ByteStream:
    stream = await rogue.open_stream(member.peer_id, member.addresses(), MESSAGES)
    session = Session(Role.OPENER, Service.MESSAGES)
    session.greet(hello)
    await stream.send(session.data_to_send())
    events = session.receive(await stream.receive())
    assert [type(event) for event in events] == [HelloReceived]
    session.accept()
    await stream.send(session.data_to_send())
    rogue.confirm(member.peer_id)
    return stream


async def _until_cut(stream: ByteStream) -> bytes:
    """What comes until the connection is gone."""
    said = b""
    try:
        while data := await stream.receive():
            said += data
    except LinkClosed:
        pass
    return said


@pytest.mark.invariant("R4")
def test_a_slow_peer_is_felt_as_waiting(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES)
    gate, full = trio.Event(), trio.Event()
    working: list[int] = []

    async def slow(_: Attested, payload: bytes) -> bytes:
        working.append(len(payload))
        if len(working) == 4:
            full.set()
        await gate.wait()
        return payload

    async def main() -> None:
        a = node(nodes[MERCY], trust)
        b = node(nodes[STLUKES], trust, slow, limits=LinkLimits(max_handlers=4))
        answers: list[bytes] = []

        async def ask() -> None:
            answers.append(await a.request(b.peer_id, b"x" * 1000, 30))

        async with running(a, b):
            await linked(a, b)
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(ask)
                await full.wait()
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert len(working) == 4
                gate.set()
        assert answers == [b"x" * 1000] * 20

    trio.run(main)


def test_a_tunnel_echoes_ten_megabytes_with_a_pause_in_the_middle(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES)
    total = 10_000_000

    async def serve(_: Attested, name: str, stream: ByteStream) -> None:
        assert name == "bytes"
        while data := await stream.receive():
            await stream.send(data)
        await stream.aclose()

    async def main() -> None:
        a, b = node(nodes[MERCY], trust), node(nodes[STLUKES], trust, on_tunnel=serve)
        sent = 0
        async with running(a, b) as nursery:
            await linked(a, b)
            tunnel = await a.open_tunnel(b.peer_id, "bytes")

            async def send() -> None:
                nonlocal sent
                for number in range(total // 10_000):
                    await tunnel.send(number.to_bytes(4, "big") * 2500)
                    sent += 10_000
                await tunnel.send_eof()

            nursery.start_soon(send)
            # Nobody reads: the sender comes to a halt, with windows and buffers full and no more.
            await trio.testing.wait_all_tasks_blocked(0.3)
            assert 0 < sent < 4_000_000
            # Messages still go through while the tunnel is stuck.
            assert await a.request(b.peer_id, b"meanwhile", 10) == b"meanwhile"
            received = bytearray()
            while data := await tunnel.receive():
                received += data
            await tunnel.aclose()
            assert len(received) == total
            assert all(int.from_bytes(received[at : at + 4], "big") == at // 10_000 for at in range(0, total, 10_000))

    trio.run(main)


def test_a_port_in_use_is_named(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES)

    async def main() -> None:
        a = node(nodes[MERCY], trust)
        async with running(a):
            [address] = a.addresses()
            for second in (Libp2pTransport(nodes[STLUKES].key, [address]), node(nodes[STLUKES], trust, listen=address)):
                with pytest.raises(ConfigError, match=f"cannot listen on {address}: the port is in use"):
                    await second.run()
        # And it is free again once the node has stopped.
        async with running(node(nodes[MERCY], trust, listen=address)):
            pass

    trio.run(main)
