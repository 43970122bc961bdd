"""What a relay carries and what it refuses, over a network in memory, by a clock that is wound on."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock

from comity.errors import LinkClosed, PolicyDenied
from comity.ids import SpiffeId
from comity.signing import PrivateKey
from comity.trust import Attested
from comity_node.transport.address import Address
from comity_node.transport.base import ByteStream, ConnectionInfo
from comity_node.transport.memory import MemoryNetwork, MemoryTransport
from comity_node.transport.messages import MessageStream
from comity_node.transport.relay import (
    HOP,
    STOP,
    Answer,
    Connect,
    Reserve,
    Status,
    decode_hop,
    decode_stop,
    encode_hop,
    encode_stop,
    expect_answer,
    open_voucher,
)
from comity_node.transport.relay_limits import RelayCounters, RelayLimits
from comity_node.transport.relay_service import RelayService

EPOCH_S = 1_800_000_000
HERE = Address("ip4", "192.0.2.1", 4001)


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


def someone(organization: str, number: int) -> Attested:
    key = PrivateKey(bytes([number] * 32))
    return Attested(organization, SpiffeId(organization, "node", f"n{number}"), key.public_key, key.peer_id)


A1, A2, B1, B2 = (someone(f"{name}.example", number) for number, name in enumerate(["a", "a", "b", "b"], start=1))
RELAY = PrivateKey(bytes(32))


class World:
    """A relay, and members that can be connected to it."""

    def __init__(self, nursery: trio.Nursery, limits: RelayLimits) -> None:
        self.network = MemoryNetwork()
        self.nursery = nursery
        self.transport = self.network.transport(RELAY.peer_id)
        self.start = trio.current_time()
        self.denied: set[tuple[str, str]] = set()
        self.members = {each.peer_id: each for each in (A1, A2, B1, B2)}
        self.service = RelayService(
            self.transport,
            RELAY,
            attested=self.members.get,
            allow=self.allow,
            addresses=lambda: [HERE],
            now_s=lambda: EPOCH_S + int(trio.current_time() - self.start),
            limits=limits,
        )

    async def allow(self, who: Attested, target: Attested | None) -> None:
        await trio.lowlevel.checkpoint()
        if (who.organization, target.organization if target else "") in self.denied:
            raise PolicyDenied("relay.carry: no rule allows it")

    async def join(self, who: Attested) -> MemoryTransport:
        transport = self.network.transport(who.peer_id)
        await self.nursery.start(transport.run)
        return transport

    async def ask(self, who: MemoryTransport, question: Reserve | Connect) -> tuple[Answer, MessageStream]:
        stream = await who.open_stream(RELAY.peer_id, [], HOP)
        await stream.send(encode_hop(question))
        messages = MessageStream(stream, 4096)
        return expect_answer(decode_hop(await messages.receive())), messages

    async def status(self, who: MemoryTransport, question: Reserve | Connect) -> int:
        answer, messages = await self.ask(who, question)
        messages.stream.reset()
        return answer.status

    def counters(self, who: Attested) -> RelayCounters:
        return self.service.counters()[who.organization]


def with_relay(test: Callable[[World], Awaitable[None]], limits: RelayLimits | None = None) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            world = World(nursery, limits or RelayLimits())
            await nursery.start(world.transport.run)
            await test(world)
            nursery.cancel_scope.cancel()

    run(main)


async def accept(stream: ByteStream) -> None:
    """Take a circuit, and echo what comes."""
    messages = MessageStream(stream, 4096)
    assert decode_stop(await messages.receive()) == Connect(A1.peer_id, 24 * 3600, 64 * 1024**3)
    await stream.send(encode_stop(Answer(Status.OK)))
    while data := await stream.receive():
        await stream.send(data)
    await stream.aclose()


def taking(handler: Callable[[ByteStream], Awaitable[None]]) -> Callable[[ByteStream], Awaitable[None]]:
    """Take a circuit whatever its limits, and go on with `handler`."""

    async def take(stream: ByteStream) -> None:
        await MessageStream(stream, 4096).receive()
        await stream.send(encode_stop(Answer(Status.OK)))
        await handler(stream)

    return take


def test_a_reservation_says_where_how_long_and_is_signed() -> None:
    async def test(world: World) -> None:
        answer, _ = await world.ask(await world.join(A1), Reserve())
        assert (answer.status, answer.expires_s) == (Status.OK, EPOCH_S + 3600)
        assert answer.addresses == (Address("ip4", "192.0.2.1", 4001, RELAY.peer_id),)
        assert (answer.limit_s, answer.limit_bytes) == (24 * 3600, 64 * 1024**3)
        assert open_voucher(answer.voucher, relay=RELAY.peer_id, peer=A1.peer_id) == answer.expires_s

    with_relay(test)


def test_a_circuit_carries_bytes_both_ways_and_its_ends() -> None:
    async def test(world: World) -> None:
        a, b = await world.join(A1), await world.join(B1)
        b.serve(STOP, accept)
        assert await world.status(b, Reserve()) == Status.OK
        answer, messages = await world.ask(a, Connect(B1.peer_id))
        assert answer.status == Status.OK
        stream = messages.stream
        await stream.send(bytes(100_000))
        back = messages.rest
        while len(back) < 100_000:
            back += await stream.receive()
        assert world.counters(A1).circuits == world.counters(B1).circuits == 1
        await stream.send_eof()
        assert await stream.receive() == b""
        await trio.testing.wait_all_tasks_blocked()
        for who in (A1, B1):
            counters = world.counters(who)
            assert (counters.circuits, counters.circuits_total, counters.bytes_carried) == (0, 1, 200_000)

    with_relay(test)


def test_a_reservation_ends_with_its_time_and_with_its_peer() -> None:
    async def test(world: World) -> None:
        a, b = await world.join(A1), await world.join(B1)
        b.serve(STOP, accept)
        assert await world.status(a, Connect(B1.peer_id)) == Status.NO_RESERVATION
        assert await world.status(b, Reserve()) == Status.OK
        await trio.sleep(3599)
        assert world.counters(B1).reservations == 1
        assert await world.status(b, Reserve()) == Status.OK  # renewed, and still one
        assert world.counters(B1).reservations == 1
        await trio.sleep(3601)
        assert await world.status(a, Connect(B1.peer_id)) == Status.NO_RESERVATION
        assert await world.status(b, Reserve()) == Status.OK
        world.network.partition(RELAY.peer_id, B1.peer_id)
        assert world.counters(B1).reservations == 0
        assert await world.status(a, Connect(B1.peer_id)) == Status.NO_RESERVATION
        assert await world.status(a, Connect(A1.peer_id)) == Status.NO_RESERVATION  # nor to itself

    with_relay(test)


@pytest.mark.invariant("S7")
def test_reservations_are_bounded_for_each_organization_and_in_all() -> None:
    async def test(world: World) -> None:
        assert [await world.status(await world.join(who), Reserve()) for who in (A1, A2, B1, B2)] == [
            Status.OK,
            Status.OK,
            Status.OK,
            Status.RESERVATION_REFUSED,
        ]
        assert world.counters(B1).refused == 1

    with_relay(test, RelayLimits(max_reservations=3, reservations_per_organization=2))

    async def one(world: World) -> None:
        assert await world.status(await world.join(A1), Reserve()) == Status.OK
        assert await world.status(await world.join(A2), Reserve()) == Status.RESERVATION_REFUSED
        assert await world.status(await world.join(B1), Reserve()) == Status.OK

    with_relay(one, RelayLimits(reservations_per_organization=1))


@pytest.mark.invariant("S1")
def test_policy_is_asked_for_each_reservation_and_each_circuit() -> None:
    async def test(world: World) -> None:
        a, b = await world.join(A1), await world.join(B1)
        b.serve(STOP, accept)
        world.denied = {("a.example", ""), ("a.example", "b.example")}
        assert await world.status(a, Reserve()) == Status.PERMISSION_DENIED
        assert await world.status(b, Reserve()) == Status.OK
        assert await world.status(a, Connect(B1.peer_id)) == Status.PERMISSION_DENIED
        world.denied = set()
        assert await world.status(a, Connect(B1.peer_id)) == Status.OK
        del world.members[A1.peer_id]
        assert await world.status(a, Reserve()) == Status.PERMISSION_DENIED
        assert await world.status(a, Connect(B1.peer_id)) == Status.PERMISSION_DENIED

    with_relay(test)


@pytest.mark.invariant("S7")
def test_a_far_end_that_says_nothing_costs_ten_seconds_and_no_circuit() -> None:
    async def test(world: World) -> None:
        a, b = await world.join(A1), await world.join(B1)

        async def silent(stream: ByteStream) -> None:
            await trio.sleep_forever()

        b.serve(STOP, silent)
        await world.status(b, Reserve())
        began = trio.current_time()
        assert await world.status(a, Connect(B1.peer_id)) == Status.CONNECTION_FAILED
        assert trio.current_time() - began == pytest.approx(10.0)
        await trio.testing.wait_all_tasks_blocked()
        assert world.counters(A1).circuits == 0
        # One that refuses, breaks off or talks nonsense costs less.

        async def refuse(stream: ByteStream) -> None:
            await stream.send(encode_stop(Answer(Status.RESOURCE_LIMIT_EXCEEDED)))

        async def nonsense(stream: ByteStream) -> None:
            await stream.send(b"\xff\xff\xff\xff\xff")

        for handler in (refuse, nonsense):
            b.serve(STOP, handler)
            assert await world.status(a, Connect(B1.peer_id)) == Status.CONNECTION_FAILED
        assert trio.current_time() - began == pytest.approx(10.0)

    with_relay(test)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"\x02\xff\xff", Status.MALFORMED_MESSAGE),
        (b"\xff\xff\xff\xff\x0f", Status.MALFORMED_MESSAGE),
        (encode_hop(Answer(Status.OK)), Status.UNEXPECTED_MESSAGE),
    ],
)
def test_who_talks_nonsense_is_told_so(said: bytes, status: Status) -> None:
    async def test(world: World) -> None:
        stream = await (await world.join(A1)).open_stream(RELAY.peer_id, [], HOP)
        await stream.send(said)
        answer = expect_answer(decode_hop(await MessageStream(stream, 4096).receive()))
        assert answer.status == status
        assert await stream.receive() == b""

    with_relay(test)


@pytest.mark.invariant("S7")
def test_who_says_nothing_is_cut_after_ten_seconds() -> None:
    async def test(world: World) -> None:
        stream = await (await world.join(A1)).open_stream(RELAY.peer_id, [], HOP)
        began = trio.current_time()
        with pytest.raises(LinkClosed):
            await stream.receive()
        assert trio.current_time() - began == pytest.approx(10.0)

    with_relay(test)


async def sink(stream: ByteStream) -> None:
    while await stream.receive():
        pass


async def deaf(stream: ByteStream) -> None:
    await trio.sleep_forever()


async def carried(world: World, handler: Callable[[ByteStream], Awaitable[None]]) -> ByteStream:
    """The near end of a circuit whose far end is served by `handler`."""
    a, b = await world.join(A1), await world.join(B1)
    b.serve(STOP, taking(handler))
    await world.status(b, Reserve())
    answer, messages = await world.ask(a, Connect(B1.peer_id))
    assert answer.status == Status.OK
    return messages.stream


async def keep_talking(stream: ByteStream) -> None:
    while True:
        await stream.send(b"still here")
        await trio.sleep(1)


async def fill(stream: ByteStream, total: int) -> int:
    """Send as much as is taken; returns how much that was."""
    sent = 0
    with trio.move_on_after(1000):
        while sent < total:
            try:
                await stream.send(bytes(10_000))
            except LinkClosed:
                break
            sent += 10_000
    return sent


@pytest.mark.invariant("S7")
def test_a_circuit_carries_so_much_and_lasts_so_long() -> None:
    async def bytes_over(world: World) -> None:
        assert 1_000_000 <= await fill(await carried(world, sink), 2_000_000) <= 1_300_000
        assert world.counters(A1).circuits == 0

    with_relay(bytes_over, RelayLimits(circuit_bytes=1_000_000))

    async def time_over(world: World) -> None:
        stream = await carried(world, sink)
        began = trio.current_time()
        with pytest.raises(LinkClosed):
            await keep_talking(stream)
        assert trio.current_time() - began == pytest.approx(60, abs=1)

    with_relay(time_over, RelayLimits(circuit_s=60))


@pytest.mark.invariant("S7")
def test_silence_ends_a_circuit_but_not_silence_on_one_side() -> None:
    async def test(world: World) -> None:
        stream = await carried(world, sink)  # the far end never says a word
        for _ in range(10):
            await trio.sleep(100)
            await stream.send(b"still here")
        began = trio.current_time()
        with pytest.raises(LinkClosed):
            await stream.receive()
        assert trio.current_time() - began == pytest.approx(120)

    with_relay(test)


@pytest.mark.invariant("R4")
def test_who_does_not_read_stops_who_sends() -> None:
    async def test(world: World) -> None:
        stream = await carried(world, deaf)
        # Two pipes of 64 KiB, and what the relay holds: 64 KiB.
        assert await fill(stream, 10_000_000) <= 3 * 65_536 + 10_000

    with_relay(test, RelayLimits(idle_s=10_000))


@pytest.mark.invariant("S7")
def test_an_organization_has_so_many_bytes_a_second_and_an_hour() -> None:
    async def second(world: World) -> None:
        stream = await carried(world, sink)
        began = trio.current_time()
        await fill(stream, 5_000_000)
        # A tenth of a second's bytes at once; the last pieces are still in the pipes.
        assert trio.current_time() - began == pytest.approx(4.9, abs=0.2)

    with_relay(second, RelayLimits(bytes_per_s=1_000_000))

    async def hour(world: World) -> None:
        stream = await carried(world, sink)
        assert await fill(stream, 5_000_000) < 1_300_000
        # Both organizations have used theirs up, also for others of theirs.
        assert await world.status(await world.join(A2), Connect(B1.peer_id)) == Status.RESOURCE_LIMIT_EXCEEDED
        await trio.sleep(3600)
        await world.status(await world.join(B2), Reserve())
        assert world.counters(A1).bytes_carried == pytest.approx(1_000_000, abs=70_000)
        assert await world.status(await world.join(A1), Connect(B2.peer_id)) != Status.RESOURCE_LIMIT_EXCEEDED

    with_relay(hour, RelayLimits(organization_bytes=1_000_000, reservation_s=100_000))


@pytest.mark.invariant("S7")
def test_circuits_are_bounded_for_each_organization_and_in_all() -> None:
    async def test(world: World) -> None:
        a, b = await world.join(A1), await world.join(B1)
        b.serve(STOP, taking(sink))
        await world.status(b, Reserve())
        answers = [await world.ask(a, Connect(B1.peer_id)) for _ in range(4)]
        assert [answer.status for answer, _ in answers] == [Status.OK] * 3 + [Status.RESOURCE_LIMIT_EXCEEDED]
        answers[0][1].stream.reset()
        await trio.testing.wait_all_tasks_blocked()
        assert await world.status(a, Connect(B1.peer_id)) == Status.OK

    with_relay(test, RelayLimits(circuits_per_organization=3))
    with_relay(test, RelayLimits(max_circuits=3))


C1 = someone("c.example", 5)


@pytest.mark.invariant("S7")
def test_nobody_uses_up_what_whoever_is_reached_may_carry() -> None:
    """A bad member opens all its circuits to a node, and sends all its bytes: another still reaches it."""

    async def circuits(world: World) -> None:
        world.members[C1.peer_id] = C1
        a, b, c = await world.join(A1), await world.join(B1), await world.join(C1)
        for each in (a, b):
            each.serve(STOP, taking(sink))
            await world.status(each, Reserve())
        for _ in range(3):
            assert (await world.ask(a, Connect(B1.peer_id)))[0].status == Status.OK
        assert await world.status(a, Connect(B1.peer_id)) == Status.RESOURCE_LIMIT_EXCEEDED
        assert (await world.ask(c, Connect(B1.peer_id)))[0].status == Status.OK
        assert (await world.ask(b, Connect(A1.peer_id)))[0].status == Status.OK
        assert world.counters(B1).circuits == 5  # counted all the same

    with_relay(circuits, RelayLimits(circuits_per_organization=3))

    async def bytes_(world: World) -> None:
        world.members[C1.peer_id] = C1
        stream = await carried(world, sink)
        assert await fill(stream, 5_000_000) < 1_300_000
        c = await world.join(C1)
        assert (await world.ask(c, Connect(B1.peer_id)))[0].status == Status.OK
        assert world.counters(B1).bytes_carried == world.counters(A1).bytes_carried

    with_relay(bytes_, RelayLimits(organization_bytes=1_000_000))


@pytest.mark.invariant("S7")
def test_a_flood_of_questions_is_no_flood_of_decisions_or_of_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    async def test(world: World) -> None:
        caplog.set_level(logging.INFO)
        world.denied = {("a.example", "")}
        asked, allow = 0, world.service._allow

        async def counting(who: Attested, target: Attested | None) -> None:
            nonlocal asked
            asked += 1
            await allow(who, target)

        world.service._allow = counting
        a, other, b = await world.join(A1), await world.join(A2), await world.join(B1)
        began = trio.current_time()
        for _ in range(500):
            for each in (a, other):
                assert await world.status(each, Reserve()) != Status.OK
        most = 64 + 2 * (trio.current_time() - began) + 1
        assert 64 <= asked <= most
        assert len([one for one in caplog.records if one.levelno >= logging.INFO]) <= most
        assert world.counters(A1).refused == 1000
        assert await world.status(b, Reserve()) == Status.OK  # nobody else's
        await trio.sleep(60)
        world.denied = set()
        assert await world.status(a, Reserve()) == Status.OK

    with_relay(test)


@pytest.mark.invariant("S1")
@pytest.mark.parametrize("gone", [A1, B1])
def test_a_circuit_ends_when_an_end_is_no_member_any_more(gone: Attested) -> None:
    async def test(world: World) -> None:
        stream = await carried(world, sink)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_talking_quietly, stream)
            await trio.sleep(100)
            member = world.members.pop(gone.peer_id)
            await trio.sleep(1)  # a link that is made anew
            world.members[gone.peer_id] = member
            await trio.sleep(100)
            assert world.counters(A1).circuits == 1
            del world.members[gone.peer_id]
            await trio.sleep(31)
            assert world.counters(A1).circuits == 0
            nursery.cancel_scope.cancel()

    with_relay(test)


@pytest.mark.invariant("S1")
def test_a_circuit_ends_when_the_policy_carries_for_it_no_more() -> None:
    async def test(world: World) -> None:
        stream = await carried(world, sink)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_talking_quietly, stream)
            await trio.sleep(1300)
            assert world.counters(A1).circuits == 1
            world.denied = {("a.example", "b.example")}
            await trio.sleep(616)
            assert world.counters(A1).circuits == 0
            nursery.cancel_scope.cancel()

    with_relay(test)


@pytest.mark.invariant("S1")
def test_a_circuit_ends_at_once_when_a_changed_policy_carries_for_it_no_more() -> None:
    async def test(world: World) -> None:
        stream = await carried(world, sink)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_talking_quietly, stream)
            await trio.sleep(1)
            world.service.look_again()
            await trio.sleep(1)
            assert world.counters(A1).circuits == 1, "another policy that carries for it, too"
            world.denied = {("a.example", "b.example")}
            world.service.look_again()
            await trio.sleep(1)
            assert world.counters(A1).circuits == 0
            nursery.cancel_scope.cancel()

    with_relay(test)


async def keep_talking_quietly(stream: ByteStream) -> None:
    with suppress(LinkClosed):
        while True:
            await stream.send(b"still here")
            await trio.sleep(50)


@pytest.mark.invariant("S7")
def test_who_is_behind_a_relay_is_no_place_for_another_reservation() -> None:
    async def test(world: World) -> None:
        a = await world.join(A1)
        world.transport.connection_info = lambda peer_id: ConnectionInfo(  # type: ignore[method-assign]
            peer_id, address="", relay=B1.peer_id, inbound=True, age_s=0.0
        )
        assert await world.status(a, Reserve()) == Status.PERMISSION_DENIED

    with_relay(test)
