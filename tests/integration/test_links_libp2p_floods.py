"""Floods on the port, and who still gets in: figures that a node survives.

Every address of 127.0.0.0/8 is this machine's, so one machine can be many sources.
"""

from __future__ import annotations

import resource
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from comity.signing import PrivateKey
from comity_node.transport.address import parse_address
from comity_node.transport.base import ByteStream
from comity_node.transport.libp2p_transport import Libp2pLimits, Libp2pTransport

ECHO = "/echo/1"
#: What a dialler of libp2p says first, and no more of it.
HALF_OPEN = b"\x13/multistream/1.0.0\n\x07/noise\n"


@asynccontextmanager
async def echo_node(limits: Libp2pLimits) -> AsyncIterator[tuple[Libp2pTransport, trio.Nursery]]:
    transport = Libp2pTransport(PrivateKey.generate(), ["/ip4/127.0.0.1/tcp/0"], limits=limits)

    async def echo(stream: ByteStream) -> None:
        transport.confirm(stream.remote_peer)
        while data := await stream.receive():
            await stream.send(data)
        await stream.aclose()

    transport.serve(ECHO, echo, strangers=True)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(transport.run)
            yield transport, nursery
            nursery.cancel_scope.cancel()


async def echoes(target: Libp2pTransport, nursery: trio.Nursery) -> float:
    """A newcomer gets an answer; returns after how many seconds."""
    client = Libp2pTransport(PrivateKey.generate(), [])
    await nursery.start(client.run)
    since = trio.current_time()
    stream = await client.open_stream(target.peer_id, target.addresses(), ECHO)
    await stream.send(b"hello")
    assert await stream.receive() == b"hello"
    await stream.aclose()
    return trio.current_time() - since


async def dial_from(source: str, target: Libp2pTransport) -> trio.SocketStream:
    made = trio.socket.socket()
    await made.bind((source, 0))
    address = parse_address(target.addresses()[0])
    await made.connect((address.host, address.port))
    return trio.SocketStream(made)


@pytest.mark.slow
@pytest.mark.invariant("S7")
def test_ten_thousand_silent_sockets_keep_nobody_out_and_cost_little() -> None:
    """They come from a hundred networks, a hundred sockets each, and stay open for as long as they are let."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 12_000), hard), hard))

    async def main() -> None:
        async with echo_node(Libp2pLimits(handshake_s=50)) as (target, nursery):
            await echoes(target, nursery)
            tracemalloc.start()
            silent = []
            slowest = 0.0
            for round_ in range(10):
                for number in range(1000):
                    silent.append(await dial_from(f"127.0.{10 + number % 100}.{1 + round_}", target))
                slowest = max(slowest, await echoes(target, nursery))
            used, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert len(silent) == 10_000
            assert target.counters()["connections_unproved"] <= 256
            assert target.counters()["unproved_evicted"] >= 10_000 - 256
            assert slowest < 5.0
            # Both ends are in this process: what is counted is mostly the ten thousand sockets of the flood.
            assert used < 40_000_000
            for stream in silent:
                stream.socket.close()

    trio.run(main)


@pytest.mark.invariant("S7")
def test_a_flood_of_half_open_peers_from_one_network_does_not_keep_others_out() -> None:
    async def main() -> None:
        async with echo_node(Libp2pLimits(handshake_s=50)) as (target, nursery):
            flood = []
            for number in range(2000):
                stream = await dial_from(f"127.0.9.{1 + number % 250}", target)
                await stream.send_all(HALF_OPEN)
                flood.append(stream)
            for _ in range(5):
                assert await echoes(target, nursery) < 5.0
            assert target.counters()["connections_unproved"] <= 64
            assert target.counters()["handshakes_refused"] + target.counters()["unproved_evicted"] >= 2000 - 64
            for stream in flood:
                stream.socket.close()

    trio.run(main)


@pytest.mark.invariant("S7")
def test_a_flood_from_everywhere_leaves_those_in_who_were_there_before() -> None:
    limits = Libp2pLimits(handshakes_per_s=1, handshake_burst=20, handshake_wait_s=0.1, handshake_s=50)

    async def main() -> None:
        async with echo_node(limits) as (target, nursery):
            await echoes(target, nursery)  # from 127.0.0.0/24, which is known from now on
            flood = []
            for number in range(300):
                stream = await dial_from(f"127.{1 + number % 200}.0.1", target)
                await stream.send_all(HALF_OPEN)
                flood.append(stream)
            for _ in range(10):
                assert await echoes(target, nursery) < 5.0
            for stream in flood:
                stream.socket.close()

    trio.run(main)


@pytest.mark.invariant("S7")
def test_a_slow_loris_has_its_time_and_no_more() -> None:
    """A byte now and then is no handshake: the time is counted from the connection, not from the last byte."""

    async def main() -> None:
        async with echo_node(Libp2pLimits(handshake_s=1.0)) as (target, nursery):
            since = trio.current_time()
            ended: list[float] = []

            async def drip(number: int) -> None:
                stream = await dial_from(f"127.0.{number}.1", target)
                try:
                    for byte in HALF_OPEN * 10:
                        await stream.send_all(bytes([byte]))
                        await trio.sleep(0.05)
                except trio.BrokenResourceError:
                    pass
                ended.append(trio.current_time() - since)
                await stream.aclose()

            async with trio.open_nursery() as lorises:
                for number in range(50):
                    lorises.start_soon(drip, number + 10)
                assert await echoes(target, nursery) < 5.0
            assert len(ended) == 50
            assert max(ended) < 5.0
            assert target.counters()["connections_unproved"] == 0

    trio.run(main)
