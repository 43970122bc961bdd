"""The provider table over a network: who is found, and what a bad member can write into it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing

from comity.errors import LinkClosed
from comity.signing import PrivateKey, peer_id_to_bytes
from comity_node.discovery.kad import KADEMLIA, Kademlia, KademliaSettings
from comity_node.p2p.v1 import kad_pb2 as pb
from comity_node.protocol.kad import Contact, K, ProviderLimits, skill_key
from comity_node.transport.base import ByteStream
from comity_node.transport.memory import MemoryNetwork, MemoryTransport
from comity_node.transport.messages import MessageStream

NOW = 1_700_000_000_000
SETTINGS = KademliaSettings(
    ask_s=1, search_s=20, idle_s=5, providers=ProviderLimits(keys=8, per_key=4, per_provider=4), allow_private=True
)


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


class Lab:
    """Nodes in a line: each knows its neighbours and links with whom it is told of."""

    def __init__(self, count: int) -> None:
        self.network = MemoryNetwork()
        self.transports: list[MemoryTransport] = []
        self.nodes: list[Kademlia] = []
        self.reached: list[str] = []
        for _ in range(count):
            transport = self.network.transport(PrivateKey.generate().peer_id)
            self.transports.append(transport)
            self.nodes.append(Kademlia(transport, self.reach, now_ms=lambda: NOW, settings=SETTINGS))
        for number in range(count - 1):
            self.nodes[number].peer_up(self.id(number + 1), ["/ip4/192.0.2.1/tcp/1"])
            self.nodes[number + 1].peer_up(self.id(number), ["/ip4/192.0.2.1/tcp/1"])

    def id(self, number: int) -> str:
        return self.transports[number].peer_id

    async def reach(self, contact: Contact) -> bool:
        await trio.lowlevel.checkpoint()
        self.reached.append(contact.peer_id)
        return True


@asynccontextmanager
async def lab(count: int) -> AsyncIterator[Lab]:
    made = Lab(count)
    async with trio.open_nursery() as nursery:
        for transport, node in zip(made.transports, made.nodes, strict=True):
            await nursery.start(transport.run)
            await nursery.start(node.run)
        yield made
        nursery.cancel_scope.cancel()


def test_a_provider_at_the_other_end_of_the_line_is_found() -> None:
    async def main() -> None:
        async with lab(12) as made:
            made.nodes[11].provide(["review"])
            made.nodes[5].provide(["review", "generate"])
            await trio.sleep(60)
            found = await made.nodes[0].find("review")
            assert {contact.peer_id for contact in found} == {made.id(5), made.id(11)}
            assert all(contact.addresses == ("/dns4/memory.example/tcp/4001",) for contact in found)
            assert [contact.peer_id for contact in await made.nodes[0].find("generate")] == [made.id(5)]
            assert await made.nodes[0].find("nothing") == []
            # Who provides it does not find itself.
            assert {contact.peer_id for contact in await made.nodes[5].find("review")} == {made.id(11)}
            assert made.reached  # others' hints lead to links, not to streams of strangers

    run(main)


def test_dead_and_unreachable_peers_only_cost_their_time() -> None:
    async def main() -> None:
        async with lab(6) as made:
            made.nodes[5].provide(["review"])
            await trio.sleep(60)
            made.network.partition(made.id(0), made.id(3))
            made.network.partition(made.id(0), made.id(4))
            began = trio.current_time()
            assert [contact.peer_id for contact in await made.nodes[0].find("review")] == [made.id(5)]
            assert trio.current_time() - began <= 5 * SETTINGS.ask_s

    run(main)


async def tell(made: Lab, message: pb.KadMessage, *, sender: int = 1, to: int = 0) -> pb.KadMessage:
    stream = await made.transports[sender].open_stream(made.id(to), [], KADEMLIA)
    messages = MessageStream(stream, 1 << 16)
    await messages.send(message.SerializeToString())
    try:
        return pb.KadMessage.FromString(await messages.receive())
    finally:
        await stream.aclose()


@pytest.mark.invariant("S5")
def test_a_record_of_somebody_else_is_not_taken() -> None:
    async def main() -> None:
        async with lab(3) as made:
            key = skill_key("review")
            forged = pb.KadPeer(id=peer_id_to_bytes(made.id(2)))
            message = pb.KadMessage(type=pb.KAD_MESSAGE_TYPE_ADD_PROVIDER, key=key, provider_peers=[forged])
            with pytest.raises(LinkClosed), trio.fail_after(30):
                await tell(made, message)
            assert made.nodes[0].records == 0
            own = pb.KadPeer(id=peer_id_to_bytes(made.id(1)))
            message = pb.KadMessage(type=pb.KAD_MESSAGE_TYPE_ADD_PROVIDER, key=key, provider_peers=[forged, own])
            with pytest.raises(LinkClosed), trio.fail_after(30):
                await tell(made, message)
            asked = pb.KadMessage(type=pb.KAD_MESSAGE_TYPE_GET_PROVIDERS, key=key)
            answer = await tell(made, asked)
            assert [peer.id for peer in answer.provider_peers] == [peer_id_to_bytes(made.id(1))]

    run(main)


@pytest.mark.invariant("S7")
def test_a_flood_of_records_stops_at_the_limit_of_its_provider() -> None:
    async def main() -> None:
        async with lab(2) as made:
            own = pb.KadPeer(id=peer_id_to_bytes(made.id(1)))
            stream = await made.transports[1].open_stream(made.id(0), [], KADEMLIA)
            for number in range(1000):
                key = skill_key(str(number))
                message = pb.KadMessage(type=pb.KAD_MESSAGE_TYPE_ADD_PROVIDER, key=key, provider_peers=[own])
                await MessageStream(stream, 1 << 16).send(message.SerializeToString())
            await stream.send_eof()
            with pytest.raises(LinkClosed):  # an ended stream is reset once all of it is read
                await stream.receive()
            assert made.nodes[0].records == SETTINGS.providers.per_provider

    run(main)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize(
    "message",
    [
        b"\xff\xff\xff\xff\x7f",  # 32 GiB follow
        b"\x05\xff\xff\xff\xff\xff",
        b"\x02\x08\x00",  # PUT_VALUE
        b"\x02\x08\x04",  # FIND_NODE without a key
        b"\x48\x08\x04\x12\x44" + bytes(68),  # a key that is too long
    ],
)
def test_garbage_ends_the_stream_and_nothing_else(message: bytes) -> None:
    async def main() -> None:
        async with lab(2) as made:
            stream = await made.transports[1].open_stream(made.id(0), [], KADEMLIA)
            await stream.send(message)
            with pytest.raises(LinkClosed), trio.fail_after(2):
                await stream.receive()
            answer = await tell(made, pb.KadMessage(type=pb.KAD_MESSAGE_TYPE_PING))
            assert answer.type == pb.KAD_MESSAGE_TYPE_PING

    run(main)


def test_a_silent_stream_is_closed() -> None:
    async def main() -> None:
        async with lab(2) as made:
            stream = await made.transports[1].open_stream(made.id(0), [], KADEMLIA)
            with pytest.raises(LinkClosed), trio.fail_after(SETTINGS.idle_s + 1):
                await stream.receive()

    run(main)


def counted(transport: MemoryTransport) -> list[tuple[str, list[str]]]:
    """Whom a node opens streams to from now on, and at which addresses."""
    opened: list[tuple[str, list[str]]] = []
    open_stream = transport.open_stream

    async def counting(peer_id: str, addresses: Sequence[str], *rest: Any, **named: Any) -> ByteStream:
        opened.append((peer_id, list(addresses)))
        return await open_stream(peer_id, addresses, *rest, **named)

    transport.open_stream = counting  # type: ignore[method-assign]
    return opened


@pytest.mark.invariant("S7")
def test_a_peer_is_answered_at_one_pace_over_all_its_streams() -> None:
    async def main() -> None:
        async with lab(2) as made, trio.open_nursery() as nursery:
            answers = 0

            async def ask_and_ask() -> None:
                nonlocal answers
                while True:
                    with suppress(LinkClosed):
                        await tell(made, pb.KadMessage(type=pb.KAD_MESSAGE_TYPE_PING))
                        answers += 1

            for _ in range(30):
                nursery.start_soon(ask_and_ask)
            await trio.sleep(10)
            assert 100 <= answers <= 2 * K + 10 * SETTINGS.questions_per_s + 1
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.invariant("S7")
def test_a_peer_that_comes_and_goes_does_not_make_a_node_publish_all_the_time() -> None:
    async def main() -> None:
        async with lab(2) as made:
            made.nodes[0].provide(["review"])
            await trio.sleep(10)
            opened = counted(made.transports[0])
            for _ in range(100):
                made.nodes[0].peer_down(made.id(1))
                made.nodes[0].peer_up(made.id(1), [])
                await trio.sleep(3)
            # A question and a record each time: three times at once, and ten in 300 seconds.
            assert 2 <= len(opened) <= 2 * (3 + 10 + 1)

    run(main)


@pytest.mark.invariant("S7")
def test_nobody_is_dialled_but_by_links() -> None:
    async def main() -> None:
        async with lab(6) as made:
            opened = counted(made.transports[0])
            made.nodes[5].provide(["review"])
            await trio.sleep(60)
            [found] = await made.nodes[0].find("review")
            assert found.peer_id == made.id(5)
            assert found.named_by in {made.id(number) for number in range(1, 6)}
            assert {addresses == [] for _, addresses in opened} == {True}

    run(main)


def test_a_place_that_becomes_free_goes_to_a_linked_peer_that_had_none() -> None:
    async def nobody(_: Contact) -> bool:
        return False

    async def main() -> None:
        transport = MemoryNetwork().transport(PrivateKey(bytes(32)).peer_id)
        node = Kademlia(transport, nobody, now_ms=lambda: NOW)
        placed: list[str] = []
        others = [PrivateKey(number.to_bytes(32, "big")).peer_id for number in range(1, 61)]
        for each in others:
            before = node.peers
            node.peer_up(each, [])
            placed += [each] * (node.peers - before)
        assert K < len(placed) < len(others)  # more than half of all are equally far: that range is full
        for each in placed:
            node.peer_down(each)
        assert node.peers == len(others) - len(placed)
        await trio.lowlevel.checkpoint()

    run(main)
