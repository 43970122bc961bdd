"""Meeting points: who registers is found, for a time, and nobody can be registered by another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from comity.errors import Busy, LinkClosed, ProtocolError
from comity.signing import PrivateKey
from comity_node.discovery.rendezvous import RENDEZVOUS, RendezvousClient, RendezvousPoint, RendezvousSettings
from comity_node.p2p.v1 import rendezvous_pb2 as pb
from comity_node.protocol.kad import Contact
from comity_node.protocol.rendezvous import Registrations, RendezvousLimits
from comity_node.transport.address import parse_address
from comity_node.transport.base import ByteStream
from comity_node.transport.memory import MemoryNetwork, MemoryTransport
from comity_node.transport.messages import MessageStream
from comity_node.transport.peer_record import open_record, sign_record

NOW = 1_700_000_000_000
KEYS = [PrivateKey(bytes(31) + bytes([number])) for number in range(4)]
LIMITS = RendezvousLimits(lives_s=100, per_peer=2, registrations=3, answer=2)
SETTINGS = RendezvousSettings(ask_s=1, every_s=50, idle_s=5, limits=LIMITS, allow_private=True)
ADDRESS = parse_address("/ip4/192.0.2.1/tcp/4001")


def test_a_record_is_what_its_peer_signed() -> None:
    record = open_record(sign_record(KEYS[0], 7, [ADDRESS]))
    assert (record.peer_id, record.seq, record.addresses) == (KEYS[0].peer_id, 7, (ADDRESS,))


@pytest.mark.invariant("S2")
def test_a_record_with_any_byte_changed_is_refused() -> None:
    data = sign_record(KEYS[0], 7, [ADDRESS])
    for index in range(len(data)):
        for bit in (1, 0x80):
            changed = bytearray(data)
            changed[index] ^= bit
            with pytest.raises(ProtocolError):
                open_record(bytes(changed))


@given(st.binary(max_size=300))
def test_garbage_is_no_record(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        open_record(data)


@pytest.mark.invariant("S7")
def test_the_table_is_bounded_and_forgets() -> None:
    table = Registrations(LIMITS)
    assert table.register("a", "p", b"1", 10, NOW) == 10
    assert table.register("a", "q", b"2", 0, NOW) == 100
    assert table.register("b", "p", b"3", 10**9, NOW) == 100
    with pytest.raises(Busy):
        table.register("c", "p", b"", 0, NOW)  # too many of p
    with pytest.raises(Busy):
        table.register("a", "r", b"", 0, NOW)  # the table is full
    assert table.register("a", "p", b"4", 10, NOW) == 10  # renewing takes no place
    first, last = table.discover("a", 0, 1, NOW)
    assert [entry.record for entry in first] == [b"2"]
    rest, last = table.discover("a", last, 0, NOW)
    assert [entry.record for entry in rest] == [b"4"]
    assert table.discover("a", last, 0, NOW) == ([], last)
    assert table.discover("a", 0, 0, NOW + 10_000)[0][0].record == b"2"
    table.unregister("a", "q")
    table.unregister("a", "q")
    table.register("a", "r", b"", 0, NOW + 10_000)
    assert len(table) == 2


@dataclass
class Lab:
    network: MemoryNetwork
    point: RendezvousPoint
    place: Contact
    transports: list[MemoryTransport]
    found: list[tuple[str, Contact]]

    def client(self, number: int) -> RendezvousClient:
        return RendezvousClient(
            self.transports[number],
            KEYS[number],
            "comity/tumours",
            [self.place],
            lambda point, contact: self.found.append((point, contact)),
            now_ms=lambda: NOW,
            settings=SETTINGS,
        )


@asynccontextmanager
async def lab() -> AsyncIterator[Lab]:
    network = MemoryNetwork()
    transports = [network.transport(key.peer_id) for key in KEYS]
    point = RendezvousPoint(transports[-1], now_ms=lambda: NOW, settings=SETTINGS)
    async with trio.open_nursery() as nursery:
        for transport in transports:
            await nursery.start(transport.run)
        yield Lab(network, point, Contact(transports[-1].peer_id), transports[:-1], [])
        nursery.cancel_scope.cancel()


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_two_meet() -> None:
    async def main() -> None:
        async with lab() as made, trio.open_nursery() as nursery:
            await nursery.start(made.client(0).run)
            await trio.sleep(1)
            assert made.found == []
            await nursery.start(made.client(1).run)
            await trio.sleep(1)
            where = ("/dns4/memory.example/tcp/4001",)
            assert made.found == [(made.place.peer_id, Contact(KEYS[0].peer_id, where))]
            await trio.sleep(SETTINGS.every_s)
            assert (made.place.peer_id, Contact(KEYS[1].peer_id, where)) in made.found
            nursery.cancel_scope.cancel()

    run(main)


def test_a_point_that_is_away_is_asked_again_soon() -> None:
    async def main() -> None:
        async with lab() as made, trio.open_nursery() as nursery:
            made.network.partition(KEYS[0].peer_id, made.place.peer_id)
            await nursery.start(made.client(0).run)
            await trio.sleep(3)
            assert len(made.point) == 0
            made.network.heal(KEYS[0].peer_id, made.place.peer_id)
            await trio.sleep(SETTINGS.retry_s + 1)
            assert len(made.point) == 1
            nursery.cancel_scope.cancel()

    run(main)


def test_all_who_have_registered_are_found_however_few_fit_an_answer() -> None:
    async def main() -> None:
        async with lab() as made:  # an answer has two
            for number in range(3):
                await made.client(number).ask(made.place)
            found = await made.client(0).ask(made.place)
            assert {contact.peer_id for contact in found} == {KEYS[1].peer_id, KEYS[2].peer_id}

    run(main)


@pytest.mark.invariant("S7")
def test_a_point_that_answers_the_same_again_and_again_is_not_asked_for_ever() -> None:
    async def main() -> None:
        async with lab() as made:
            liar, asked = made.network.transport(PrivateKey(b"liar" * 8).peer_id), 0
            record = sign_record(KEYS[1], 1, [ADDRESS])

            async def lie(stream: ByteStream) -> None:
                nonlocal asked
                messages = MessageStream(stream, 1 << 16)
                while True:
                    question = pb.RendezvousMessage.FromString(await messages.receive())
                    asked += 1
                    answer = pb.RendezvousMessage(register_response=pb.RendezvousRegisterResponse(ttl=9))
                    if question.type == pb.RENDEZVOUS_TYPE_DISCOVER:
                        entries = [pb.RendezvousRegister(ns="x", signed_peer_record=record)] * 3
                        answer = pb.RendezvousMessage(
                            discover_response=pb.RendezvousDiscoverResponse(
                                registrations=entries, cookie=asked.to_bytes(8, "big")
                            )
                        )
                    await messages.send(answer.SerializeToString())

            liar.serve(RENDEZVOUS, lie)
            async with trio.open_nursery() as nursery:
                await nursery.start(liar.run)
                found = await made.client(0).ask(Contact(liar.peer_id))
                assert [contact.peer_id for contact in found] == [KEYS[1].peer_id]
                assert asked <= 1 + LIMITS.registrations // LIMITS.answer + 1
                nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.invariant("S7")
def test_a_peer_is_answered_at_one_pace_over_all_its_streams() -> None:
    async def main() -> None:
        async with lab() as made, trio.open_nursery() as nursery:
            answers = 0

            async def ask_and_ask() -> None:
                nonlocal answers
                question = pb.RendezvousMessage(
                    type=pb.RENDEZVOUS_TYPE_DISCOVER, discover=pb.RendezvousDiscover(ns="x")
                )
                while True:
                    with suppress(LinkClosed):
                        await ask(made, question)
                        answers += 1

            for _ in range(20):
                nursery.start_soon(ask_and_ask)
            await trio.sleep(10)
            assert 50 <= answers <= 32 + 10 * SETTINGS.questions_per_s + 1
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.invariant("S7")
def test_only_links_dial_a_meeting_point() -> None:
    async def main() -> None:
        async with lab() as made:
            transport = made.transports[0]
            dialled: list[str] = []
            open_stream = transport.open_stream

            async def opening(peer_id: str, addresses: Sequence[str], *rest: Any, **named: Any) -> ByteStream:
                dialled.extend(addresses)
                return await open_stream(peer_id, addresses, *rest, **named)

            transport.open_stream = opening  # type: ignore[method-assign]
            await made.client(0).ask(Contact(made.place.peer_id, ("/ip4/192.0.2.1/tcp/1",)))
            assert len(made.point) == 1
            assert dialled == []

    run(main)


def test_a_clock_that_goes_back_leaves_no_registration_for_ever() -> None:
    table = Registrations(RendezvousLimits(registrations=1))
    table.register("a", "p", b"", 0, NOW + 10**12)
    assert table.discover("a", 0, 0, NOW) == ([], 0)
    table.register("a", "q", b"", 0, NOW)
    assert [entry.peer_id for entry in table.discover("a", 0, 0, NOW)[0]] == ["q"]


async def ask(made: Lab, message: pb.RendezvousMessage) -> pb.RendezvousMessage:
    stream = await made.transports[0].open_stream(made.place.peer_id, [], RENDEZVOUS)
    messages = MessageStream(stream, 1 << 16)
    try:
        await messages.send(message.SerializeToString())
        return pb.RendezvousMessage.FromString(await messages.receive())
    finally:
        stream.reset()


@pytest.mark.invariant("S5")
def test_nobody_registers_another() -> None:
    async def main() -> None:
        async with lab() as made:
            stolen = sign_record(KEYS[1], 1, [ADDRESS])
            answer = await ask(
                made, pb.RendezvousMessage(register=pb.RendezvousRegister(ns="a", signed_peer_record=stolen))
            )
            assert answer.register_response.status == pb.RENDEZVOUS_STATUS_NOT_AUTHORIZED
            forged = stolen[:-1] + bytes([stolen[-1] ^ 1])
            answer = await ask(
                made, pb.RendezvousMessage(register=pb.RendezvousRegister(ns="a", signed_peer_record=forged))
            )
            assert answer.register_response.status == pb.RENDEZVOUS_STATUS_INVALID_SIGNED_PEER_RECORD
            answer = await ask(made, pb.RendezvousMessage(register=pb.RendezvousRegister(signed_peer_record=stolen)))
            assert answer.register_response.status == pb.RENDEZVOUS_STATUS_INVALID_NAMESPACE
            assert len(made.point) == 0

    run(main)


@pytest.mark.invariant("S7")
def test_a_flood_of_namespaces_ends_at_the_limit() -> None:
    async def main() -> None:
        async with lab() as made:
            own = sign_record(KEYS[0], 1, [ADDRESS])
            statuses = [
                (
                    await ask(
                        made,
                        pb.RendezvousMessage(register=pb.RendezvousRegister(ns=str(number), signed_peer_record=own)),
                    )
                ).register_response.status
                for number in range(10)
            ]
            assert statuses[:2] == [pb.RENDEZVOUS_STATUS_OK_UNSPECIFIED] * 2
            assert set(statuses[2:]) == {pb.RENDEZVOUS_STATUS_UNAVAILABLE}
            with pytest.raises(LinkClosed):
                await ask(made, pb.RendezvousMessage(type=pb.RENDEZVOUS_TYPE_DISCOVER_RESPONSE))
            asked = pb.RendezvousDiscover(ns="0", cookie=b"123")
            answer = await ask(made, pb.RendezvousMessage(type=pb.RENDEZVOUS_TYPE_DISCOVER, discover=asked))
            assert answer.discover_response.status == pb.RENDEZVOUS_STATUS_INVALID_COOKIE

    run(main)
