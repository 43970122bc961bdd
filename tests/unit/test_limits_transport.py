"""Limits of the transport that no other test would miss."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from comity.errors import Busy, ComityError, LinkClosed, PeerUnreachable, ProtocolError
from comity.signing import PrivateKey
from comity_node.transport.address import Address
from comity_node.transport.arrivals import Arrivals
from comity_node.transport.base import ByteStream
from comity_node.transport.budget import Budget
from comity_node.transport.dcutr import PunchConnect, Puncher, PunchLimits
from comity_node.transport.libp2p_transport import Libp2pLimits, Libp2pTransport
from comity_node.transport.memory import MemoryNetwork
from comity_node.transport.relay_circuit import Circuit, End, Payment
from comity_node.transport.relay_client import RelayClient, RelayClientLimits
from comity_node.transport.relay_limits import Account, RelayLimits
from comity_node.transport.yamux import INITIAL_WINDOW, MuxLimits, Yamux
from kit.muxes import muxed_over, read_exactly, run_virtual

pytestmark = pytest.mark.invariant("S7")

ECHO, MULTISTREAM = "/echo/1", b"\x13/multistream/1.0.0\n"
UPDATE, SYN, RST = 1, 1, 8


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


# Handshakes, at a pace.


async def turns(arrivals: Arrivals, sources: list[str]) -> int:
    """How many get a turn of those who come at the same time."""
    got = 0

    async def come(source: str) -> None:
        nonlocal got
        try:
            await arrivals.pace.turn(source)
        except Busy:
            return
        got += 1

    async with trio.open_nursery() as nursery:
        for source in sources:
            nursery.start_soon(come, source)
    return got


def test_a_source_has_its_burst_and_its_rate_of_handshakes() -> None:
    async def main() -> None:
        arrivals = Arrivals(
            Libp2pLimits(source_handshakes_per_s=1, source_handshake_burst=5, handshakes_per_s=1000, handshake_wait_s=0)
        )
        assert await turns(arrivals, ["192.0.2.0/24"] * 100) <= 6
        assert await turns(arrivals, ["198.51.100.0/24"] * 3) == 3
        await trio.sleep(10)
        assert await turns(arrivals, ["192.0.2.0/24"] * 100) <= 6

    run(main)


def test_known_sources_have_a_reserve_and_no_more() -> None:
    async def main() -> None:
        arrivals = Arrivals(
            Libp2pLimits(
                handshakes_per_s=0.001, handshake_burst=1, handshake_wait_s=0, reserved_handshakes_per_s=4,
                source_handshakes_per_s=1000, source_handshake_burst=1000,
            )
        )  # fmt: skip
        known = "192.0.2.0/24"
        arrivals.pace.remember(known)
        assert await turns(arrivals, [known] * 100) <= 1 + 2 * 4
        assert await turns(arrivals, ["198.51.100.0/24"]) == 0

    run(main)


# Connections.


@asynccontextmanager
async def node(limits: Libp2pLimits | None = None) -> AsyncIterator[tuple[Libp2pTransport, trio.Nursery]]:
    transport = Libp2pTransport(PrivateKey.generate(), ["/ip4/127.0.0.1/tcp/0"], limits=limits)

    async def echo(stream: ByteStream) -> None:
        await stream.send(await stream.receive())
        await stream.aclose()

    transport.serve(ECHO, echo, strangers=True)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(transport.run)
            yield transport, nursery
            nursery.cancel_scope.cancel()


async def dialled(target: Libp2pTransport, nursery: trio.Nursery) -> Libp2pTransport:
    """A client that got an answer."""
    client = Libp2pTransport(PrivateKey.generate(), [])
    await nursery.start(client.run)
    stream = await client.open_stream(target.peer_id, target.addresses(), ECHO)
    await stream.send(b"hello")
    assert await stream.receive() == b"hello"
    return client


def test_a_handshake_may_have_so_many_bytes() -> None:
    async def main() -> None:
        async with node(Libp2pLimits(handshake_bytes=100)) as (target, nursery):
            with pytest.raises(ComityError):
                await dialled(target, nursery)
            assert target.counters()["connections"] == 0

    trio.run(main)


def test_connections_are_bounded_both_ways() -> None:
    async def main() -> None:
        async with node(Libp2pLimits(max_connections=2)) as (target, nursery):
            await dialled(target, nursery)
            await dialled(target, nursery)
            with pytest.raises(ComityError):
                await dialled(target, nursery)
            with pytest.raises(Busy, match="2 connections are open"):
                await target.dial(PrivateKey.generate().peer_id, ["/ip4/127.0.0.1/tcp/1"])
            assert target.counters()["connections"] == 2

    trio.run(main)


def test_an_address_that_does_not_answer_is_given_up() -> None:
    async def main() -> None:
        deaf = trio.socket.socket()
        await deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        full = []
        async with trio.open_nursery() as nursery:  # the kernel answers as many as it keeps waiting
            for _ in range(4):
                each = trio.socket.socket()
                full.append(each)
                nursery.start_soon(each.connect, deaf.getsockname())
            client = Libp2pTransport(PrivateKey.generate(), [], limits=Libp2pLimits(dial_s=0.3))
            await nursery.start(client.run)
            with trio.fail_after(10), pytest.raises(PeerUnreachable, match=r"no answer in 0\.3 s"):
                await client.open_stream(
                    PrivateKey.generate().peer_id, [f"/ip4/127.0.0.1/tcp/{deaf.getsockname()[1]}"], ECHO
                )
            nursery.cancel_scope.cancel()
        for each in (*full, deaf):
            each.close()

    trio.run(main)


def test_a_stream_that_says_no_protocol_is_reset() -> None:
    async def main() -> None:
        async with node(Libp2pLimits(negotiate_s=0.3)) as (target, nursery):
            client = await dialled(target, nursery)
            connection = client.connections.best(target.peer_id)
            assert connection is not None
            silent = connection.mux.open()
            await silent.send(MULTISTREAM[:5])
            await silent.receive(len(MULTISTREAM))
            with trio.fail_after(10), pytest.raises(LinkClosed):
                await silent.receive()

    trio.run(main)


# Streams of one connection.


def frame(kind: int, flags: int, stream_id: int, length: int, body: bytes = b"") -> bytes:
    return struct.pack(">BBHII", 0, kind, flags, stream_id, length) + body


def test_a_stream_begins_with_the_window_that_it_has() -> None:
    mux = Yamux(initiator=False, limits=MuxLimits(window=2 * INITIAL_WINDOW))
    mux.receive(frame(UPDATE, SYN, 1, 0) + frame(0, 0, 1, 2 * INITIAL_WINDOW, bytes(2 * INITIAL_WINDOW)))
    with pytest.raises(ProtocolError, match="over its window"):
        mux.receive(frame(0, 0, 1, 1, b"x"))


def test_windows_of_one_connection_add_up_to_a_limit() -> None:
    limits = MuxLimits(max_bytes=2 * INITIAL_WINDOW, free_bytes=INITIAL_WINDOW)
    mux = Yamux(initiator=False, limits=limits, budget=Budget(1 << 40))
    mux.receive(frame(UPDATE, SYN, 1, 0) + frame(UPDATE, SYN, 3, 0))
    mux.data_to_send()
    mux.receive(frame(UPDATE, SYN, 5, 0))
    assert mux.data_to_send() == frame(UPDATE, RST, 5, 0)
    assert mux.metrics().granted_bytes == 2 * INITIAL_WINDOW


def test_a_window_grows_no_wider_than_it_may() -> None:
    now = 0.0
    mux = Yamux(
        initiator=False, limits=MuxLimits(max_window=1 << 20), clock=lambda: now, budget=Budget(1 << 30)
    )  # fmt: skip
    mux.receive(frame(UPDATE, SYN, 1, 0))
    mux.data_to_send()
    mux.ping()
    ping = mux.data_to_send()
    now += 1.0  # a line of a second's round trip
    mux.receive(ping[:3] + b"\x02" + ping[4:])
    left = INITIAL_WINDOW
    for _ in range(20):
        mux.receive(frame(0, 0, 1, left, bytes(left)))
        mux.consumed(1, left)
        now += 0.01
        left = sum(length for _, _, _, _, length in struct.iter_unpack(">BBHII", mux.data_to_send()))
    assert mux.metrics().window_bytes == 1 << 20


def test_who_sends_more_than_waits_to_be_sent_waits() -> None:
    async def main() -> None:
        async with muxed_over(limits=MuxLimits(send_buffer=32 * 1024)) as (pair, nursery):
            ours, theirs = await pair.open()
            sent = 0

            async def send() -> None:
                nonlocal sent
                for _ in range(100):
                    await ours.send(bytes(16 * 1024))
                    sent += 16 * 1024

            nursery.start_soon(send)
            await trio.sleep(1)
            assert sent <= INITIAL_WINDOW + 32 * 1024 + 16 * 1024
            assert len(await read_exactly(theirs, 100 * 16 * 1024)) == 100 * 16 * 1024

    run_virtual(main)


# Relays and hole punching.

RELAY = PrivateKey(bytes([1] * 32)).peer_id
WHERE = f"/ip4/192.0.2.1/tcp/4001/p2p/{RELAY}"
THROUGH = Address("ip4", "192.0.2.1", 4001, relay=RELAY)


class Silent:
    """A transport whose relay takes every stream and says nothing."""

    def __init__(self, *, confirmed: bool) -> None:
        self.peer_id = PrivateKey(bytes([2] * 32)).peer_id
        self.connections: Any = SimpleNamespace(
            is_confirmed=lambda _: confirmed, changed=lambda: None, until=self._until
        )

    async def _until(self, condition: Callable[[], bool]) -> None:
        if not condition():
            await trio.sleep_forever()

    async def open_stream(self, peer_id: str, addresses: object, protocol: str, **_: object) -> ByteStream:
        await trio.lowlevel.checkpoint()
        return MemoryNetwork().connect(self.peer_id, peer_id)[0]


def client_of(transport: Silent, limits: RelayClientLimits) -> RelayClient:
    return RelayClient(transport, [WHERE], limits=limits, now_s=lambda: 0.0, random_bytes=bytes)  # type: ignore[arg-type]


def test_a_relay_that_says_nothing_is_given_up() -> None:
    async def main() -> None:
        client = client_of(Silent(confirmed=True), RelayClientLimits(answer_s=3, link_s=2))
        began = trio.current_time()
        with pytest.raises(PeerUnreachable, match="does not answer"):
            await client.open_circuit(THROUGH, PrivateKey.generate().peer_id)
        assert trio.current_time() - began == pytest.approx(5)

    run(main)


def test_a_relay_has_so_long_to_be_linked_with() -> None:
    asked: list[float] = []

    async def link_with(relay: Address, timeout_s: float) -> None:
        asked.append(timeout_s)
        await trio.sleep(timeout_s)
        raise PeerUnreachable("no link")

    async def main() -> None:
        client = client_of(Silent(confirmed=False), RelayClientLimits(answer_s=3, link_s=2))
        client.link_with = link_with
        with pytest.raises(PeerUnreachable, match="no link"):
            await client.open_circuit(THROUGH, PrivateKey.generate().peer_id)
        assert asked == [2]

    run(main)


def test_an_attempt_to_meet_takes_so_long() -> None:
    async def main() -> None:
        async def never(*_: object, **__: object) -> None:
            await trio.sleep_forever()

        puncher = Puncher(SimpleNamespace(meet=never), allow_private=False, limits=PunchLimits(attempt_s=2))
        began = trio.current_time()
        with pytest.raises(LinkClosed, match="did not meet in 2 s"):
            await puncher._meet("peer", 4001, PunchConnect((Address("ip4", "8.8.8.8", 4001),)), initiator=True)
        assert trio.current_time() - began == pytest.approx(2)

    run(main)


def test_a_relay_holds_so_much_of_one_end_until_the_other_has_taken_it() -> None:
    taken = 0

    class Endless:
        async def receive(self, max_bytes: int) -> bytes:
            nonlocal taken
            await trio.lowlevel.checkpoint()
            taken += min(max_bytes, 1 << 20)
            return bytes(min(max_bytes, 1 << 20))

    class Deaf:
        async def send(self, data: bytes) -> None:
            await trio.sleep_forever()

        async def receive(self, max_bytes: int) -> bytes:
            await trio.sleep_forever()

    async def main() -> None:
        limits = RelayLimits(buffer_bytes=1000, circuit_s=5)
        near, far = End(Endless(), b""), End(Deaf(), b"")  # type: ignore[arg-type]
        await Circuit(limits, Payment(Account(limits), ()), trio.sleep_forever).run(near, far)
        assert taken == 1000

    run(main)


def test_a_member_asks_a_relay_so_often() -> None:
    async def main() -> None:
        account = Account(RelayLimits(questions_per_s=2, questions_at_once=5))

        def asked() -> int:
            for number in range(1000):
                try:
                    account.questions.claim()
                except Busy:
                    return number
            return 1000

        assert asked() == 5
        await trio.sleep(2)
        assert asked() == 4
        await trio.sleep(100)
        assert asked() == 5

    run(main)


def test_so_many_peers_are_met_at_a_time() -> None:
    async def main() -> None:
        direct = SimpleNamespace(best=lambda _: None)
        puncher = Puncher(SimpleNamespace(connections=direct), allow_private=False, limits=PunchLimits(serving=2))
        asking: Any = SimpleNamespace(remote_peer="third")
        puncher._serving.add("first")
        with pytest.raises(LinkClosed, match="nothing to upgrade"):
            await puncher.serve(asking)
        puncher._serving.add("second")
        with pytest.raises(Busy):
            await puncher.serve(asking)

    run(main)
