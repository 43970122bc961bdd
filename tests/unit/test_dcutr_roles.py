"""Who says what when two peers upgrade their relayed connection, and who begins the handshake; no sockets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from comity.errors import Busy, LinkClosed, LinkError, UnexpectedMessage
from comity_node.transport.address import Address
from comity_node.transport.base import ByteStream
from comity_node.transport.dcutr import (
    PunchConnect,
    Puncher,
    PunchLimits,
    PunchSync,
    decode_punch,
    encode_punch,
)
from comity_node.transport.memory import MemoryNetwork, MemoryStream
from comity_node.transport.messages import MessageStream
from comity_node.transport.varint import delimit

A, B = Address("ip4", "198.51.100.1", 1001), Address("ip4", "198.51.100.2", 1002)


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


class Slow:
    """A stream on which everything that is sent takes some time."""

    def __init__(self, stream: MemoryStream, delay_s: float) -> None:
        self._stream, self._delay_s = stream, delay_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def send(self, data: bytes) -> None:
        await self._stream.send(data)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = await self._stream.receive(max_bytes)
        await trio.sleep(self._delay_s)
        return data


class Host:
    """The transport of one end, which notes when it is told to meet the other."""

    def __init__(self, ours: Address | None) -> None:
        self.ours = ours
        self.relayed: Any = SimpleNamespace(relay="relay", peer_id="peer")
        self.stream: Any = None
        self.listening: list[Address] = []
        self.dialled: list[Address] = []
        self.met: list[tuple[float, int, Sequence[Address], bool]] = []
        self.failures = 0
        self.start = trio.current_time()
        self.direct = False
        self.refuses_dial = False

    @property
    def connections(self) -> Any:
        async def until(condition: Callable[[], bool]) -> None:
            await trio.lowlevel.checkpoint()

        best = SimpleNamespace(relay="") if self.direct else self.relayed
        return SimpleNamespace(
            until=until, is_confirmed=lambda peer: True, best=lambda peer: best, changed=lambda: None
        )

    def observed_through(self, relay: str) -> tuple[int, Address] | None:
        assert relay == "relay"
        return (self.ours.port, self.ours) if self.ours else None

    async def open_stream(self, peer_id: str, addresses: Sequence[str], protocol: str) -> ByteStream:
        await trio.lowlevel.checkpoint()
        assert (peer_id, list(addresses), protocol) == ("peer", [], "/libp2p/dcutr")
        stream: ByteStream = self.stream
        return stream

    async def listens_at(self, peer_id: str) -> Sequence[Address]:
        await trio.lowlevel.checkpoint()
        return self.listening

    async def dial_directly(self, peer_id: str, addresses: Sequence[Address]) -> None:
        await trio.lowlevel.checkpoint()
        self.dialled += addresses
        if self.refuses_dial:
            raise LinkClosed("refused")

    async def meet(self, peer_id: str, port: int, addresses: Sequence[Address], *, initiator: bool) -> None:
        self.met.append((round(trio.current_time() - self.start, 6), port, list(addresses), initiator))
        if len(self.met) <= self.failures:
            await trio.sleep(1)
            raise LinkClosed("nobody came")


async def upgrade(a: Host, b: Host, *, delay_s: float = 0.2, allow_private: bool = True) -> tuple[Puncher, Puncher]:
    """Let `b`, which was dialled through the relay, upgrade its connection with `a`."""
    ours, theirs = MemoryNetwork().connect("peer", "peer")
    b.stream = Slow(ours, delay_s / 2)
    pa, pb = (Puncher(host, allow_private=allow_private, limits=PunchLimits(settle_s=0)) for host in (a, b))

    async def serve() -> None:
        try:
            await pa.serve(Slow(theirs, delay_s / 2))
        except (LinkError, trio.TooSlowError):
            theirs.reset()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await pb.upgrade(b.relayed)
    return pa, pb


def test_both_dial_at_the_same_moment_and_who_dialled_the_relay_begins_the_handshake() -> None:
    async def main() -> None:
        a, b = Host(A), Host(B)
        _, puncher = await upgrade(a, b)
        # Half a round trip after SYNC, which is when it has arrived.
        assert a.met == [(0.3, 1001, [B], True)]
        assert b.met == [(0.3, 1002, [A], False)]
        assert (puncher.upgraded, puncher.failed) == (1, 0)

    run(main)


def test_there_are_three_attempts_each_with_its_own_round_trip() -> None:
    async def main() -> None:
        a, b = Host(A), Host(B)
        a.failures = b.failures = 2
        _, puncher = await upgrade(a, b)
        assert [at for at, *_ in b.met] == pytest.approx([0.3, 1.6, 2.9])
        assert [at for at, *_ in a.met] == pytest.approx([0.3, 1.6, 2.9])
        assert puncher.upgraded == 1

    run(main)


@pytest.mark.invariant("S7")
def test_after_three_it_is_left_alone_for_a_while() -> None:
    async def main() -> None:
        a, b = Host(A), Host(B)
        a.failures = b.failures = 9
        _, puncher = await upgrade(a, b)
        assert (len(a.met), len(b.met), puncher.failed) == (3, 3, 1)
        await puncher.upgrade(b.relayed)
        assert len(b.met) == 3
        await trio.sleep(600)
        await puncher.upgrade(b.relayed)  # the stream of then is closed: it fails again, but it was tried
        assert puncher.failed == 2

    run(main)


def test_who_listens_is_dialled_and_only_if_that_fails_met() -> None:
    async def main() -> None:
        for refuses in (False, True):
            a, b = Host(A), Host(B)
            b.listening = [Address("ip4", "8.8.8.8", 1)]
            b.refuses_dial = refuses
            _, puncher = await upgrade(a, b) if refuses else (None, Puncher(b, allow_private=True))
            if not refuses:
                await puncher.upgrade(b.relayed)
            assert b.dialled == b.listening
            assert (len(b.met), puncher.upgraded) == (int(refuses), 1)

    run(main)


@pytest.mark.invariant("S7")
def test_nobody_is_led_into_a_private_network() -> None:
    async def main() -> None:
        a, b = Host(Address("ip4", "10.0.0.1", 22)), Host(Address("ip4", "169.254.169.254", 80))
        b.listening = [Address("ip4", "127.0.0.1", 22), Address("ip4", "0.0.0.0", 22)]
        _, puncher = await upgrade(a, b, allow_private=False)
        assert (a.met, b.met, b.dialled) == ([], [], [])
        assert puncher.failed == 1

    run(main)


def test_without_an_observed_address_or_with_a_direct_connection_nothing_is_done() -> None:
    async def main() -> None:
        a, b = Host(A), Host(None)
        _, puncher = await upgrade(a, b)
        assert (b.met, puncher.failed) == ([], 1)
        b = Host(B)
        b.direct = True
        _, puncher = await upgrade(a, b)
        assert (b.met, puncher.failed, puncher.upgraded) == ([], 0, 0)
        stream, _ = MemoryNetwork().connect("peer", "peer")
        with pytest.raises(LinkClosed, match="connected directly"):
            await Puncher(b, allow_private=True).serve(stream)

    run(main)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("said", [[PunchSync()], [PunchConnect((A,)), PunchConnect((A,))]])
def test_what_is_said_out_of_turn_ends_it(said: list[PunchConnect | PunchSync]) -> None:
    async def main() -> None:
        ours, theirs = MemoryNetwork().connect("peer", "peer")
        host = Host(B)
        for message in said:
            await MessageStream(ours, 4096).send(encode_punch(message))
        with pytest.raises(UnexpectedMessage):
            await Puncher(host, allow_private=True).serve(theirs)
        assert host.met == []

    run(main)


@pytest.mark.invariant("S7")
def test_who_says_nothing_is_waited_for_a_bounded_time() -> None:
    async def main() -> None:
        ours, theirs = MemoryNetwork().connect("peer", "peer")
        host = Host(B)
        began = trio.current_time()
        with pytest.raises(trio.TooSlowError):
            await Puncher(host, allow_private=True).serve(theirs)
        assert trio.current_time() - began == pytest.approx(15)
        host.stream = ours
        puncher = Puncher(host, allow_private=True, limits=PunchLimits(settle_s=0))
        await puncher.upgrade(host.relayed)
        assert trio.current_time() - began == pytest.approx(25)
        assert puncher.failed == 1
        assert decode_punch(await MessageStream(theirs, 4096).receive()) == PunchConnect((B,))

    run(main)


@pytest.mark.invariant("S7")
def test_a_member_cannot_make_a_node_knock_at_whatever_addresses_it_names() -> None:
    """Each round is some seconds of connection attempts: one at a time, and after those that met nobody none."""

    async def main() -> None:
        host = Host(A)
        host.failures = 1000
        puncher = Puncher(host, allow_private=False, limits=PunchLimits())

        async def ask(rounds: int) -> int:
            """How many of the rounds the node has taken part in."""
            ours, theirs = MemoryNetwork().connect("peer", "peer")
            messages = MessageStream(ours, 4096)

            async def talk() -> None:
                for _ in range(rounds):
                    await ours.send(delimit(encode_punch(PunchConnect((Address("ip4", "8.8.8.8", 443),)))))
                    await messages.receive()
                    await ours.send(delimit(encode_punch(PunchSync())))

            before = len(host.met)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk)
                with suppress(Busy, trio.TooSlowError):
                    await puncher.serve(theirs)
                nursery.cancel_scope.cancel()
            return len(host.met) - before

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask, 3)
        assert len(host.met) == 3
        for _ in range(20):
            assert await ask(3) == 0
            await trio.sleep(10)
        await trio.sleep(200)
        assert await ask(1) == 1
        # Who was met may ask again: the next time it comes through a relay.
        await trio.sleep(400)
        host.failures = 0
        assert await ask(1) == 1
        assert await ask(1) == 1

    run(main)
