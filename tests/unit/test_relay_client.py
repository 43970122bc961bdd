"""How a node keeps its reservations, with a relay that is made to fail, by a clock that is wound on."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from comity.errors import ComityError, ConfigError, LinkClosed, PeerUnreachable, UnexpectedMessage
from comity.signing import PrivateKey
from comity_node.transport.address import Address, parse_address
from comity_node.transport.base import ByteStream, Priority
from comity_node.transport.memory import MemoryNetwork
from comity_node.transport.messages import MessageStream
from comity_node.transport.relay import (
    Answer,
    Connect,
    Reserve,
    Status,
    decode_hop,
    decode_stop,
    encode_hop,
    encode_stop,
    seal_voucher,
)
from comity_node.transport.relay_client import RelayClient
from comity_node.transport.wire import RawStream

EPOCH_S = 1_800_000_000.0
RELAY, US, PEER = (PrivateKey(bytes([number] * 32)) for number in (1, 2, 3))
WHERE = f"/ip4/192.0.2.1/tcp/4001/p2p/{RELAY.peer_id}"


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


class FakeConnections:
    """Of connections the client wants to know whether the relay is confirmed."""

    def __init__(self) -> None:
        self.confirmed: set[str] = set()
        self.lot = trio.lowlevel.ParkingLot()

    def is_confirmed(self, peer_id: str) -> bool:
        return peer_id in self.confirmed

    def changed(self) -> None:
        self.lot.unpark_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        await trio.lowlevel.checkpoint()
        while not condition():
            await self.lot.park()


class Transport:
    """A transport whose relay answers as the test says."""

    def __init__(self, answer: Callable[[], Answer | ComityError]) -> None:
        self.connections: Any = FakeConnections()
        self.peer_id = US.peer_id
        self.answer = answer
        self.asked: list[tuple[float, Reserve | Connect | Answer]] = []
        self.welcomed: list[tuple[str, str, str]] = []
        self.start = trio.current_time()
        self.observed: list[str] = []

    async def open_stream(
        self, peer_id: str, addresses: Sequence[str], protocol: str, *, priority: Priority = Priority.WORK
    ) -> ByteStream:
        assert (peer_id, list(addresses)) == (RELAY.peer_id, [WHERE])
        ours, theirs = MemoryNetwork().connect(US.peer_id, RELAY.peer_id)
        outer = self

        class Stream(type(ours)):  # type: ignore[misc]
            async def send(self, data: bytes) -> None:
                await super().send(data)
                asked = decode_hop(await MessageStream(theirs, 4096).receive())
                outer.asked.append((round(trio.current_time() - outer.start, 3), asked))
                answer = outer.answer()
                if isinstance(answer, ComityError):
                    raise answer
                await theirs.send(encode_hop(answer) + (b"more" if isinstance(asked, Connect) else b""))

        ours.__class__ = Stream
        return ours

    async def welcome(self, raw: RawStream, *, relay: str, peer_id: str) -> None:
        await trio.lowlevel.checkpoint()
        self.welcomed.append((relay, peer_id, raw.remote_address))
        assert await raw.receive_some(3) == b"not"
        assert await raw.receive_some(100) == b"hing"

    async def learn_observed(self, relay: str) -> None:
        await trio.lowlevel.checkpoint()
        self.observed.append(relay)
        raise LinkClosed("it does not say")

    def now_s(self) -> float:
        return EPOCH_S + trio.current_time() - self.start


def granted(ttl_s: float, **rest: Any) -> Answer:
    return Answer(Status.OK, expires_s=int(EPOCH_S + ttl_s), **rest)


def client(transport: Transport, *, random: bytes = b"\x80\x00", relays: Sequence[str] = (WHERE,)) -> RelayClient:
    return RelayClient(transport, relays, now_s=transport.now_s, random_bytes=lambda count: random)


def test_a_reservation_is_made_when_the_relay_is_attested_and_renewed_in_time() -> None:
    async def main() -> None:
        transport = Transport(lambda: granted(trio.current_time() - transport.start + 400))
        relays = client(transport)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relays.run)
            await trio.sleep(100)
            assert (transport.asked, relays.addresses()) == ([], [])
            assert relays.reservations()[0].reason == "not linked with it yet"
            transport.connections.confirmed.add(RELAY.peer_id)
            transport.connections.changed()
            await trio.sleep(1000)
            assert [at for at, _ in transport.asked] == pytest.approx([100, 400, 700, 1000], abs=2)
            assert [str(each) for each in relays.addresses()] == [f"{WHERE}/p2p-circuit"]
            [state] = relays.reservations()
            assert (state.relay, state.is_held, state.reason, state.renewals) == (WHERE, True, "", 4)
            assert transport.observed == [RELAY.peer_id] * 4
            # The relay is gone: so is the address. It comes back: so does the address.
            transport.connections.confirmed.clear()
            transport.connections.changed()
            await trio.testing.wait_all_tasks_blocked()
            assert relays.addresses() == []
            assert relays.reservations()[0].reason == "the connection to it is gone"
            transport.connections.confirmed.add(RELAY.peer_id)
            transport.connections.changed()
            await trio.testing.wait_all_tasks_blocked()
            assert len(relays.addresses()) == 1
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize(("ttl_s", "every_s"), [(-1000, 30), (0.5, 30), (10**9, 3600)])
def test_no_relay_makes_us_ask_all_the_time_or_never_again(ttl_s: float, every_s: float) -> None:
    async def main() -> None:
        transport = Transport(lambda: granted(ttl_s))
        transport.connections.confirmed.add(RELAY.peer_id)
        with trio.move_on_after(every_s * 2.5):
            await client(transport).run()
        assert [at for at, _ in transport.asked] == [0, every_s, 2 * every_s]

    run(main)


@pytest.mark.parametrize(("random", "part"), [(b"\x00\x00", 0.5), (b"\xff\xff", 1.0)])
def test_a_refusal_is_asked_about_again_ever_later_with_jitter(random: bytes, part: float) -> None:
    async def main() -> None:
        answers: list[Answer | ComityError] = [
            Answer(Status.RESERVATION_REFUSED),
            LinkClosed("broke"),
            Answer(Status.OK),
            *[Answer(Status.PERMISSION_DENIED)] * 9,
        ]
        transport = Transport(lambda: answers.pop(0))
        transport.connections.confirmed.add(RELAY.peer_id)
        relays = client(transport, random=random)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relays.run)
            await trio.sleep(270 * part)
            nursery.cancel_scope.cancel()
        times = [at for at, _ in transport.asked]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        longest = [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
        assert gaps == pytest.approx([each * part for each in longest], rel=0.001)
        assert relays.reservations()[0].reason.endswith("says PERMISSION_DENIED")

    run(main)


@pytest.mark.invariant("S2")
def test_only_what_the_relay_has_signed_and_what_is_its_own_is_taken() -> None:
    own = Address("dns4", "relay.example", 4001, RELAY.peer_id)
    others = (own, Address("ip4", "10.0.0.1", 1, PEER.peer_id), own.through())

    async def reserve(answer: Answer) -> RelayClient:
        transport = Transport(lambda: answer)
        transport.connections.confirmed.add(RELAY.peer_id)
        relays = client(transport)
        with trio.move_on_after(0.1):
            await relays.run()
        return relays

    async def main() -> None:
        voucher = seal_voucher(RELAY, US.peer_id, int(EPOCH_S))
        relays = await reserve(granted(100, addresses=others, voucher=voucher))
        assert [str(each) for each in relays.addresses()] == [f"{WHERE}/p2p-circuit", f"{own}/p2p-circuit"]
        for bad in (seal_voucher(PEER, US.peer_id, 1), seal_voucher(RELAY, PEER.peer_id, 1), b"nonsense"):
            assert (await reserve(granted(100, voucher=bad))).addresses() == []

    run(main)


def test_a_circuit_is_asked_for_after_the_relay_is_linked_with() -> None:
    async def main() -> None:
        transport = Transport(lambda: Answer(Status.OK))
        relays = client(transport, relays=[])
        address = parse_address(f"{WHERE}/p2p-circuit")
        with pytest.raises(PeerUnreachable, match="no link with the relay"):
            await relays.open_circuit(address, PEER.peer_id)
        linked: list[str] = []

        async def link_with(relay: Address, timeout_s: float) -> None:
            await trio.lowlevel.checkpoint()
            linked.append(str(relay))
            transport.connections.confirmed.add(relay.peer_id)

        relays.link_with = link_with
        for _ in range(2):
            raw = await relays.open_circuit(address, PEER.peer_id)
            assert (await raw.receive_some(2), await raw.receive_some(9)) == (b"mo", b"re")
            assert raw.remote_address == f"{WHERE}/p2p-circuit"
        assert linked == [WHERE]
        assert [asked for _, asked in transport.asked] == [Connect(PEER.peer_id)] * 2
        transport.answer = lambda: Answer(Status.NO_RESERVATION)
        with pytest.raises(PeerUnreachable, match="says NO_RESERVATION"):
            await relays.open_circuit(address, PEER.peer_id)

    run(main)


@pytest.mark.invariant("S7")
def test_only_a_relay_at_which_we_have_reserved_brings_us_connections() -> None:
    async def stop(relays: RelayClient, sender: str, said: bytes) -> int:
        ours, theirs = MemoryNetwork().connect(US.peer_id, sender)
        await theirs.send(said)
        try:
            await relays.serve_stop(ours)
        except UnexpectedMessage:
            pass
        answer = decode_stop(await MessageStream(theirs, 4096).receive())
        assert isinstance(answer, Answer)
        return answer.status

    async def main() -> None:
        transport = Transport(lambda: granted(400))
        relays = client(transport)
        knock = encode_stop(Connect(PEER.peer_id)) + b"nothing"
        assert await stop(relays, RELAY.peer_id, knock) == Status.PERMISSION_DENIED  # not reserved yet
        transport.connections.confirmed.add(RELAY.peer_id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relays.run)
            await trio.testing.wait_all_tasks_blocked()
            assert await stop(relays, PEER.peer_id, knock) == Status.PERMISSION_DENIED  # not our relay
            assert await stop(relays, RELAY.peer_id, encode_stop(Connect(US.peer_id))) == Status.PERMISSION_DENIED
            assert await stop(relays, RELAY.peer_id, encode_stop(Answer(Status.OK))) == Status.UNEXPECTED_MESSAGE
            assert transport.welcomed == []
            assert await stop(relays, RELAY.peer_id, knock) == Status.OK
            assert transport.welcomed == [(RELAY.peer_id, PEER.peer_id, f"{WHERE}/p2p-circuit")]
            silent, _ = MemoryNetwork().connect(US.peer_id, RELAY.peer_id)
            began = trio.current_time()
            with pytest.raises(LinkClosed):
                await relays.serve_stop(silent)
            assert trio.current_time() - began == pytest.approx(15)
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.parametrize("text", ["/ip4/192.0.2.1/tcp/4001", f"{WHERE}/p2p-circuit", "relay.example"])
def test_a_relay_is_named_with_its_peer_id(text: str) -> None:
    async def main() -> None:
        await trio.lowlevel.checkpoint()
        with pytest.raises(ConfigError):
            client(Transport(lambda: granted(1)), relays=[text])

    run(main)


@pytest.mark.invariant("S7")
def test_a_relay_that_names_many_addresses_does_not_push_out_the_others() -> None:
    """Others take so few addresses of a node that one bad relay could keep it from being reached."""

    async def main() -> None:
        many = tuple(Address("ip4", f"8.8.8.{number}", 1, RELAY.peer_id) for number in range(8))
        wild = Address("ip4", "0.0.0.0", 1, RELAY.peer_id)
        transport = Transport(lambda: granted(400, addresses=(wild, *many)))
        relays = client(transport, relays=(WHERE, f"/ip4/192.0.2.2/tcp/4001/p2p/{PEER.peer_id}"))
        second = relays._relays[PEER.peer_id]
        second.held = True
        transport.connections.confirmed = {RELAY.peer_id}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relays._keep, relays._relays[RELAY.peer_id])
            await trio.testing.wait_all_tasks_blocked()
            hosts = [address.host for address in relays.addresses()]
            assert hosts[:2] == ["192.0.2.1", "192.0.2.2"]
            assert len(hosts) == 2 + 3
            assert "0.0.0.0" not in hosts
            nursery.cancel_scope.cancel()

    run(main)
