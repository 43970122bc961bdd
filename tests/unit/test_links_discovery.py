"""Discovery: from one address to the full mesh, and what a lying peer can do to it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from comity.errors import ComityError, ConfigError, DeadlineExceeded, LinkClosed, StorageError
from comity.signing import PrivateKey
from comity.trust import Attested, NodeIdentity, TrustStore
from comity_node.config import NetworkConfig
from comity_node.discovery import Discovery, DiscoverySettings, PeerHint
from comity_node.links import Changes, Links, LinkState
from comity_node.network import is_near
from comity_node.transport.address import parse_address
from comity_node.transport.memory import MemoryNetwork

Consortium = Callable[..., tuple[TrustStore, dict[str, NodeIdentity]]]
NAMES = ("a.example", "b.example", "c.example", "d.example", "e.example")


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


class Table:
    """Links as discovery sees them, without a network."""

    def __init__(self) -> None:
        self.peer_id = PrivateKey.generate().peer_id
        self.changes = Changes()
        self.known: dict[str, LinkState] = {}

    def peers(self) -> list[LinkState]:
        return list(self.known.values())

    def add_peer(self, peer_id: str, addresses: Sequence[str] = (), *, keep: bool = False) -> None:
        before = self.known[peer_id].addresses if peer_id in self.known else ()
        self.known[peer_id] = LinkState(peer_id, "", "", (*before, *addresses), "down", "", 0, 0, 0, 0, 0, 0)
        self.changes.note()

    async def remove_peer(self, peer_id: str) -> None:
        await trio.lowlevel.checkpoint()
        del self.known[peer_id]

    def connect(self, peer_id: str, organization: str) -> None:
        self.known[peer_id] = LinkState(
            peer_id, organization, "n", ("/ip4/192.0.2.9/tcp/1",), "connected", "", 0, 0, 0, 0, 0, 0
        )
        self.changes.note()


async def nobody(_: str) -> list[PeerHint]:
    return []


def discovery(table: Table, **rest: object) -> Discovery:
    settings = DiscoverySettings(**rest)  # type: ignore[arg-type]
    return Discovery(table, nobody, bootstrap=[], organizations=lambda: set(NAMES), settings=settings)


def hint(address: str = "/ip4/8.8.8.8/tcp/4001", organization: str = "b.example") -> PeerHint:
    return PeerHint(PrivateKey.generate().peer_id, organization, (address,))


def test_when_the_consortium_changes_those_who_are_linked_are_asked_at_once() -> None:
    async def main() -> None:
        table, asked = Table(), []

        async def ask(peer_id: str) -> list[PeerHint]:
            asked.append(trio.current_time())
            return []

        finder = Discovery(table, ask, bootstrap=[], organizations=lambda: {"a.example"})
        table.connect(PrivateKey.generate().peer_id, "a.example")
        async with trio.open_nursery() as nursery:
            await nursery.start(finder.run)
            await trio.sleep(10)
            assert asked == [0.0]
            finder.look_again()
            await trio.sleep(1)
            assert asked == [0.0, 10.0]
            nursery.cancel_scope.cancel()

    run(main)


def test_five_nodes_form_a_full_mesh_from_one_bootstrap_address(consortium: Consortium) -> None:
    trust, nodes = consortium(*NAMES)

    async def main() -> None:
        network = MemoryNetwork()
        links: dict[str, Links] = {}
        finders: dict[str, Discovery] = {}

        async def echo(_: Attested, payload: bytes) -> bytes:
            return payload

        def fetch_from(asker: str) -> Callable[[str], Awaitable[list[PeerHint]]]:
            async def fetch(peer_id: str) -> list[PeerHint]:
                await links[asker].request(peer_id, b"who is there", 5)
                [name] = [name for name in NAMES if nodes[name].peer_id == peer_id]
                return finders[name].hints()

            return fetch

        async with trio.open_nursery() as nursery:
            for name in NAMES:
                links[name] = Links(
                    network.transport(nodes[name].peer_id),
                    nodes[name],
                    trust,
                    echo,
                    now_ms=lambda: time.time_ns() // 1_000_000,
                    random_bytes=bytes,
                )
                await nursery.start(links[name].run)
                bootstrap = [] if name == NAMES[0] else [f"/dns4/a.example/tcp/4001/p2p/{nodes[NAMES[0]].peer_id}"]
                finders[name] = Discovery(
                    links[name],
                    fetch_from(name),
                    bootstrap=bootstrap,
                    organizations=lambda name=name: set(NAMES) - {name},  # type: ignore[misc]
                )
                await nursery.start(finders[name].run)
            with trio.fail_after(10):
                for name in NAMES:
                    while finders[name].missing():
                        await links[name].changes.wait(links[name].changes.version)
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.invariant("S7")
def test_hints_of_one_peer_are_bounded_and_dead_ends_are_forgotten() -> None:
    async def main() -> None:
        table = Table()
        finder = discovery(table, max_unproved=5, max_hints=20, give_up_s=60)
        async with trio.open_nursery() as nursery:
            await nursery.start(finder.run)
            finder.learn("liar", [hint() for _ in range(1000)])
            assert len(table.known) == 5
            finder.learn("honest", [hint()])
            assert len(table.known) == 6
            [kept] = [peer for peer in table.known if peer not in list(table.known)[:5]]
            table.connect(kept, "b.example")
            await trio.sleep(100)
            assert list(table.known) == [kept]
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.parametrize(
    "bad",
    [
        PeerHint("12D3nonsense", "b.example", ("/ip4/8.8.8.8/tcp/1",)),
        hint("/ip4/127.0.0.1/tcp/1"),
        hint("/ip4/10.1.2.3/tcp/1"),
        hint("/ip6/fe80::1/tcp/1"),
        hint("/ip4/0.0.0.0/tcp/1"),
        hint("/ip6/::ffff:127.0.0.1/tcp/1"),
        hint("/dns4/localhost/tcp/1"),
        hint("/dns4/db.localhost./tcp/1"),
        hint("/dns4/127.0.0.1/tcp/1"),
        hint("/ip4/8.8.8.8/udp/1"),
        hint("/ip4/8.8.8.8/tcp/99999"),
        hint(organization="stranger.example"),
        PeerHint(PrivateKey.generate().peer_id, "b.example", ()),
    ],
)
def test_a_malformed_or_useless_hint_is_dropped_and_the_next_is_taken(bad: PeerHint) -> None:
    async def main() -> None:
        table = Table()
        good = hint()
        discovery(table).learn("somebody", [bad, PeerHint(table.peer_id, "b.example", bad.addresses), good])
        assert list(table.known) == [good.peer_id]
        await trio.lowlevel.checkpoint()

    run(main)


@pytest.mark.invariant("S7")
def test_a_hint_at_which_two_peers_answer_stops_no_node(consortium: Consortium) -> None:
    """The links themselves take it, and everything above them runs on."""
    trust, nodes = consortium(*NAMES[:2])
    asked = 0

    async def fetch(_: str) -> list[PeerHint]:
        nonlocal asked
        asked += 1
        other = PrivateKey.generate().peer_id
        return [hint(f"/ip4/8.8.8.8/tcp/1/p2p/{other}"), hint()]

    async def echo(_: Attested, payload: bytes) -> bytes:
        return payload

    async def main() -> None:
        network = MemoryNetwork()
        a, b = (
            Links(
                network.transport(nodes[name].peer_id),
                nodes[name],
                trust,
                echo,
                now_ms=lambda: time.time_ns() // 1_000_000,
                random_bytes=bytes,
            )
            for name in NAMES[:2]
        )
        bootstrap = [f"/dns4/b.example/tcp/1/p2p/{b.peer_id}"]
        finder = Discovery(a, fetch, bootstrap=bootstrap, organizations=lambda: set(NAMES))
        async with trio.open_nursery() as nursery:
            for part in (a.run, b.run, finder.run):
                await nursery.start(part)
            await a.wait_for(b.peer_id, 10)
            await trio.sleep(7)
            assert asked >= 3
            assert {state.state for state in a.peers()} == {"connected", "down"}, "the good hints are followed"
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("error", [LinkClosed, StorageError, ConfigError])
def test_whatever_is_wrong_with_a_hint_the_next_is_taken(error: type[ComityError]) -> None:
    async def main() -> None:
        bad, good = hint(), hint()

        class Picky(Table):
            def add_peer(self, peer_id: str, addresses: Sequence[str] = (), *, keep: bool = False) -> None:
                if peer_id == bad.peer_id:
                    raise error("no")
                super().add_peer(peer_id, addresses)

        table = Picky()
        discovery(table).learn("somebody", [bad, good])
        assert list(table.known) == [good.peer_id]
        await trio.lowlevel.checkpoint()

    run(main)


@pytest.mark.invariant("S7")
def test_dead_ends_count_for_who_named_them_and_are_not_taken_again_at_once() -> None:
    """A liar that names others and others, or the same, cannot keep a node knocking."""

    async def main() -> None:
        table = Table()
        finder = discovery(table, max_unproved=5, give_up_s=60, dead_end_s=120)
        knocked: set[str] = set()
        same = hint()
        async with trio.open_nursery() as nursery:
            await nursery.start(finder.run)
            for _ in range(600):
                finder.learn("liar", [same, *(hint() for _ in range(10))])
                knocked |= set(table.known)
                await trio.sleep(1)
            assert same.peer_id in knocked
            assert len(knocked) <= 5 * (1 + 600 / 180)
            await trio.sleep(300)
            late = hint()
            finder.learn("liar", [late])
            assert late.peer_id in table.known
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.invariant("S7")
def test_a_relay_goes_on_the_account_of_who_has_named_peers_behind_it() -> None:
    """Else whoever names many relays that are none keeps everybody from relays that are."""

    async def main() -> None:
        table = Table()
        finder = discovery(table, max_unproved=4)
        relays = [PrivateKey.generate().peer_id for _ in range(5)]
        for relay in relays:
            finder.learn("liar", [hint(f"/ip4/8.8.8.8/tcp/1/p2p/{relay}/p2p-circuit")])
        behind = len(table.known)
        assert behind == 4
        for relay in relays[:4]:
            finder.learn("relays", [PeerHint(relay, "", ("/ip4/8.8.8.8/tcp/1",))])
        assert len(table.known) == behind
        honest = [hint() for _ in range(4)]
        finder.learn("relays", honest)
        assert len(table.known) == behind + 4
        await trio.lowlevel.checkpoint()

    run(main)


@pytest.mark.invariant("S7")
def test_an_answer_full_of_hints_looks_at_all_links_once_and_not_once_for_each() -> None:
    async def main() -> None:
        looks = 0

        class Counting(Table):
            def peers(self) -> list[LinkState]:
                nonlocal looks
                looks += 1
                return super().peers()

        table = Counting()
        discovery(table).learn("liar", [hint() for _ in range(128)])
        assert looks <= 3
        await trio.lowlevel.checkpoint()

    run(main)


def test_rounds_become_rarer_while_an_organization_stays_away_and_whoever_is_new_is_asked_alone() -> None:
    async def main() -> None:
        table = Table()
        asked: list[str] = []

        async def fetch(peer_id: str) -> list[PeerHint]:
            await trio.lowlevel.checkpoint()
            asked.append(peer_id)
            return []

        finder = Discovery(table, fetch, bootstrap=[], organizations=lambda: {"a.example", "b.example", "away.example"})
        first, second = (PrivateKey.generate().peer_id for _ in range(2))
        table.connect(first, "a.example")
        async with trio.open_nursery() as nursery:
            await nursery.start(finder.run)
            await trio.sleep(299.5)
            assert 10 <= len(asked) <= 20  # not 150
            asked.clear()
            table.connect(second, "b.example")
            await trio.testing.wait_all_tasks_blocked()
            assert asked == [second]
            await trio.sleep(31)
            assert set(asked) == {first, second}
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.invariant("S7")
def test_the_nodes_of_an_organization_name_peers_on_one_account() -> None:
    async def main() -> None:
        table = Table()
        for node in ("evil1", "evil2"):
            table.connect(node, "e.example")
        table.connect("honest", "d.example")
        finder = discovery(table, max_unproved=5)
        for source in ("evil1", "evil2", "honest"):
            finder.learn(source, [hint() for _ in range(10)])
        assert len(table.known) == 3 + 5 + 5
        await trio.lowlevel.checkpoint()

    run(main)


def test_private_addresses_are_dialled_where_the_settings_say_so() -> None:
    async def main() -> None:
        table = Table()
        local = PeerHint(PEER, "b.example", ("/ip4/127.0.0.1/tcp/1", "/ip4/1.1.1.1/tcp/1"))
        discovery(table, allow_private=True, max_addresses=1).learn("somebody", [local])
        assert [state.addresses for state in table.peers()] == [("/ip4/127.0.0.1/tcp/1",)]
        await trio.lowlevel.checkpoint()

    run(main)


@pytest.mark.parametrize(
    ("listen", "bootstrap", "near"),
    [
        ("/ip4/0.0.0.0/tcp/4101", "/ip4/8.8.8.8/tcp/4101", False),  # a wildcard says nothing about the network
        ("/ip6/::/tcp/4101", "/dns4/node.example/tcp/4101", False),
        ("/ip4/0.0.0.0/tcp/4101", "/ip4/10.0.0.7/tcp/4101", True),
        ("/ip4/127.0.0.1/tcp/0", "/dns4/node.example/tcp/4101", True),
    ],
)
def test_a_node_is_near_when_its_operator_names_a_private_address(listen: str, bootstrap: str, near: bool) -> None:
    config = SimpleNamespace(network=NetworkConfig(listen=(listen,), bootstrap=(bootstrap,)))
    assert is_near(config) is near  # type: ignore[arg-type]
    unlistened = SimpleNamespace(network=NetworkConfig(listen=(), relays=(bootstrap,)))
    assert is_near(unlistened) is parse_address(bootstrap).is_private  # type: ignore[arg-type]


def test_it_asks_often_while_somebody_is_missing_and_seldom_after() -> None:
    async def main() -> None:
        table = Table()
        asked: list[float] = []

        async def fetch(peer_id: str) -> list[PeerHint]:
            asked.append(trio.current_time())
            raise DeadlineExceeded("no answer")

        organizations = {"b.example", "c.example"}
        finder = Discovery(table, fetch, bootstrap=[], organizations=lambda: organizations)
        async with trio.open_nursery() as nursery:
            began = trio.current_time()
            await nursery.start(finder.run)
            await trio.sleep(1)
            table.connect(PrivateKey.generate().peer_id, "b.example")
            await trio.testing.wait_all_tasks_blocked()
            assert asked == [began + 1]  # at once
            await trio.sleep(6.5)
            assert [round(at - began) for at in asked] == [1, 2, 4, 6]
            asked.clear()
            table.connect(PrivateKey.generate().peer_id, "c.example")
            await trio.sleep(59)
            assert len(asked) == 3 + 2  # the new one at once; both in the next round, and half a minute later
            nursery.cancel_scope.cancel()

    run(main)


def test_a_bootstrap_address_says_who_must_answer() -> None:
    with pytest.raises(ConfigError, match="/p2p/"):
        Discovery(Table(), nobody, bootstrap=["/ip4/192.0.2.1/tcp/4001"], organizations=set)


PEER = PrivateKey.generate().peer_id


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/192.0.2.1/tcp/4001",
        "/ip6/2001:db8::1/tcp/1",
        "/dns4/node.mercy.example/tcp/65535",
        pytest.param(f"/dns/node/tcp/0/p2p/{PEER}", id="of-a-peer"),
    ],
)
def test_addresses_are_read_and_written_alike(text: str) -> None:
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "192.0.2.1:4001",
        "/ip4/192.0.2.1",
        "/ip4/192.0.2.1/udp/4001",
        "/ip4/300.0.2.1/tcp/4001",
        "/ip4/192.0.2.1/tcp/65536",
        "/ip4/192.0.2.1/tcp/-1",
        "/ip4/192.0.2.1/tcp/４",
        "/ip6/192.0.2.1/tcp/1",
        "/dns4/-bad-/tcp/1",
        "/dns4/a b/tcp/1",
        "/ip4/192.0.2.1/tcp/4001/p2p/QmNotEd25519",
        "/ip4/192.0.2.1/tcp/4001/ws",
        "/unix/x/tcp/1",
        # What resolvers take for 127.0.0.1, and zones, with which no address is anybody else's.
        "/dns4/127.0.0.1/tcp/1",
        "/dns4/127.1/tcp/1",
        "/dns4/2130706433/tcp/1",
        "/dns4/0x7f000001/tcp/1",
        "/dns4/0x7f.1./tcp/1",
        "/dns4/127.0.0.0x1/tcp/1",
        "/ip6/fe80::1%eth0/tcp/1",
        "/ip6/2001:db8::1%\u00e9/tcp/1",
        "x" * 10_000,
    ],
)
def test_what_is_no_address_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="is no address") as refused:
        parse_address(text)
    assert len(str(refused.value)) < 400
