"""Limits of discovery that no other test would miss."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from comity.errors import ComityError
from comity.signing import PrivateKey
from comity_node.discovery.hints import Discovery, DiscoverySettings, PeerHint
from comity_node.discovery.kad import Kademlia, KademliaSettings
from comity_node.discovery.rendezvous import RENDEZVOUS, RendezvousClient, RendezvousPoint, RendezvousSettings
from comity_node.links import Changes, LinkState
from comity_node.protocol.kad import Contact
from comity_node.protocol.rendezvous import Registrations, RendezvousLimits
from comity_node.transport.memory import MemoryNetwork, MemoryTransport

pytestmark = pytest.mark.invariant("S7")

US, PEER = (PrivateKey(bytes([number] * 32)) for number in (1, 2))


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


def deaf() -> tuple[MemoryTransport, list[float]]:
    """A transport whose streams never open, and when they were asked for."""
    transport, asked = MemoryNetwork().transport(US.peer_id), list[float]()

    async def open_stream(*_: object, **__: object) -> None:
        asked.append(trio.current_time())
        await trio.sleep_forever()

    transport.open_stream = open_stream  # type: ignore[method-assign, assignment]
    return transport, asked


# Kademlia.


def kademlia(transport: MemoryTransport, settings: KademliaSettings) -> Kademlia:
    async def reach(_: Contact) -> bool:
        return True

    node = Kademlia(transport, reach, now_ms=lambda: 0, settings=settings)
    node.peer_up(PEER.peer_id, ["/ip4/192.0.2.1/tcp/1"])
    return node


@pytest.mark.parametrize(
    ("settings", "takes_s"),
    [(KademliaSettings(ask_s=3, search_s=100), 3), (KademliaSettings(ask_s=1000, search_s=20), 20)],
)
def test_a_peer_that_does_not_answer_holds_a_search_up_for_so_long(settings: KademliaSettings, takes_s: float) -> None:
    async def main() -> None:
        node = kademlia(deaf()[0], settings)
        began = trio.current_time()
        assert await node.find("review") == []
        assert trio.current_time() - began == pytest.approx(takes_s)

    run(main)


def test_so_many_searches_go_on_at_once() -> None:
    async def main() -> None:
        transport, asked = deaf()
        node = kademlia(transport, KademliaSettings(searches=2, ask_s=10))
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(node.find, "review")
            await trio.sleep(9)
            assert len(asked) == 2
        assert len(asked) == 6

    run(main)


# Rendezvous.


def test_a_meeting_point_that_does_not_answer_is_asked_anew() -> None:
    async def main() -> None:
        transport, asked = deaf()
        client = RendezvousClient(
            transport, US, "comity/lab", [Contact(PEER.peer_id, ())], lambda *_: None,
            now_ms=lambda: 0, settings=RendezvousSettings(ask_s=2, retry_s=5),
        )  # fmt: skip
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            await trio.sleep(100)
            nursery.cancel_scope.cancel()
        assert len(asked) >= 14

    run(main)


def test_a_stream_on_which_a_meeting_point_is_asked_nothing_is_closed() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        theirs, ours = network.transport(PEER.peer_id), network.transport(US.peer_id)
        RendezvousPoint(theirs, now_ms=lambda: 0, settings=RendezvousSettings(idle_s=7))
        async with trio.open_nursery() as nursery:
            await nursery.start(theirs.run)
            await nursery.start(ours.run)
            theirs.confirm(US.peer_id)
            stream = await ours.open_stream(PEER.peer_id, (), RENDEZVOUS)
            await stream.send(b"\x05")
            began = trio.current_time()
            with trio.fail_after(60):
                try:
                    assert await stream.receive() == b""
                except ComityError:
                    pass
            assert trio.current_time() - began == pytest.approx(7)
            nursery.cancel_scope.cancel()

    run(main)


def test_an_answer_of_a_meeting_point_has_so_many_registrations() -> None:
    table = Registrations(RendezvousLimits(answer=10))
    for number in range(30):
        table.register("comity/lab", f"peer{number}", b"record", 60, 0)
    for limit in (0, 10, 10_000, 2**63):
        entries, _ = table.discover("comity/lab", 0, limit, 0)
        assert len(entries) == 10


# Hints.


class Table:
    """Links without a link."""

    peer_id = US.peer_id

    def __init__(self) -> None:
        self.changes = Changes()
        self.known: dict[str, Sequence[str]] = {}

    def peers(self) -> list[LinkState]:
        return []

    def add_peer(self, peer_id: str, addresses: Sequence[str] = (), *, keep: bool = False) -> None:
        self.known[peer_id] = addresses

    async def remove_peer(self, peer_id: str) -> None:
        del self.known[peer_id]


def discovery(table: Table, **settings: Any) -> Discovery:
    async def never(_: str) -> list[PeerHint]:
        await trio.sleep_forever()

    return Discovery(
        table, never, bootstrap=(), organizations=lambda: ["b.example"], settings=DiscoverySettings(**settings)
    )  # fmt: skip


def hint(addresses: int = 1) -> PeerHint:
    where = tuple(f"/ip4/8.8.{number // 250}.{1 + number % 250}/tcp/1" for number in range(addresses))
    return PeerHint(PrivateKey.generate().peer_id, "b.example", where)


def test_the_last_places_are_for_who_is_needed_or_searched_for() -> None:
    class Full(Table):
        def peers(self) -> list[LinkState]:
            return [LinkState(each, "b.example", "n", (), "connected", "", 0, 0, 0, 0, 0, 0) for each in self.known]

    async def nobody(_: str) -> list[PeerHint]:
        await trio.lowlevel.checkpoint()
        return []

    async def main() -> None:
        table, needed = Full(), set[str]()
        finder = Discovery(
            table, nobody, bootstrap=(), organizations=lambda: ["b.example", "c.example"],
            needed=needed.__contains__, settings=DiscoverySettings(max_casual=3, max_unproved=1000),
        )  # fmt: skip
        finder.learn("somebody", [hint() for _ in range(5)])
        assert len(table.known) == 3
        finder.learn("the news", [hint()])
        assert len(table.known) == 3
        finder.learn("provider table", [hint()], searched=True)
        assert len(table.known) == 4
        needed.add("c.example")
        finder.learn("the news", [hint(), replace(hint(), organization="c.example")])
        assert len(table.known) == 5
        known = next(iter(table.known))
        finder.learn("the news", [PeerHint(known, "b.example", ("/ip4/8.8.8.8/tcp/9",))])
        assert len(table.known) == 5

    trio.run(main)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("searched", [False, True])
def test_one_that_names_peers_that_are_not_there_does_not_take_the_places_that_are_kept(searched: bool) -> None:
    """It says that they are of an organization that is needed, or names them to a search: 8 of 32 places are its."""

    class Full(Table):
        def peers(self) -> list[LinkState]:
            return [LinkState(each, "", "", (), "down", "", 0, 0, 0, 0, 0, 0) for each in self.known]

    async def nobody(_: str) -> list[PeerHint]:
        await trio.lowlevel.checkpoint()
        return []

    async def main() -> None:
        table = Full()
        finder = Discovery(
            table, nobody, bootstrap=(), organizations=lambda: ["b.example", "c.example"],
            needed={"b.example"}.__contains__, settings=DiscoverySettings(max_casual=4),
        )  # fmt: skip
        for number in range(4):
            finder.learn(f"honest {number}", [hint()])
        finder.learn("liar", [hint() for _ in range(60)], searched=searched)
        assert len(table.known) == 4 + 8
        finder.learn("honest", [partner := hint()], searched=searched)
        assert partner.peer_id in table.known

    trio.run(main)


def test_so_many_hints_of_one_answer_are_taken() -> None:
    async def main() -> None:
        table = Table()
        discovery(table, max_hints=20, max_unproved=1000).learn("somebody", [hint() for _ in range(50)])
        assert len(table.known) == 20

    run(main)


def test_so_many_addresses_of_one_hint_are_taken() -> None:
    async def main() -> None:
        table = Table()
        discovery(table, max_addresses=4).learn("somebody", [hint(addresses=100)])
        assert [len(addresses) for addresses in table.known.values()] == [4]

    run(main)


def test_a_peer_has_so_long_to_say_whom_it_knows() -> None:
    async def main() -> None:
        began = trio.current_time()
        await discovery(Table(), ask_s=6)._ask("somebody")
        assert trio.current_time() - began == pytest.approx(6)

    run(main)
