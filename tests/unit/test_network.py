"""A node's network, put together: the revocations that it knows, and on whose account it dials."""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from comity.bundle import new_bundle, sign_bundle, verify_bundle
from comity.ca import OrganizationCa, certificate_request, read_certificates
from comity.errors import Busy, ChainInvalid, RevocationInvalid
from comity.ids import SpiffeId
from comity.revocation import sign_revocation, verify_revocation
from comity.signing import PrivateKey
from comity.trust import Attested, NodeIdentity, TrustStore
from comity_node.config import load
from comity_node.discovery import PeerHint
from comity_node.links import Changes, LinkState
from comity_node.network import Doings, Network
from comity_node.protocol.kad import Contact
from comity_node.storage import revocations
from comity_node.storage.database import Database, open_database

MERCY, HOPE = "mercy.example", "hope.example"
HOUR_MS = 3_600_000


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class World:
    """Two organizations; `network` makes the network of mercy's node."""

    home: Path
    cas: dict[str, OrganizationCa]
    trust: TrustStore

    def identity(self, organization: str, seed: int) -> NodeIdentity:
        key = PrivateKey(bytes([seed]) * 32)
        request = certificate_request(key, SpiffeId(organization, "node", f"n{seed}"))
        return NodeIdentity.of(key, read_certificates(self.cas[organization].issue(request, now=datetime.now(UTC))))

    def revocation(self, of: NodeIdentity, issued_ms: int) -> bytes:
        return sign_revocation(self.cas[of.organization], of.chain[0], issued_ms=issued_ms, reason="stolen")

    def network(self, database: Database, *, gossip: bool = True, peers: int = 256) -> Network:
        node = self.home / "node.yaml"
        node.write_text(
            f"version: 1\norganization: {MERCY}\nnode: n1\nlisten: /ip4/127.0.0.1/tcp/0\n"
            f"discovery: {{gossip: {str(gossip).lower()}}}\nlimits: {{peers: {peers}}}\n"
        )

        async def nothing(*_: object) -> Sequence[Any]:
            await trio.lowlevel.checkpoint()
            return ()

        async def echo(_: Attested, payload: bytes) -> bytes:
            await trio.lowlevel.checkpoint()
            return payload

        gate: Any = SimpleNamespace(now_ms=now_ms)
        doings = Doings(echo, nothing, nothing, nothing, tuple, trio.Event, (), nothing, lambda _: None)
        identity = self.identity(MERCY, 1)
        return Network(
            load(node), identity=identity, trust=self.trust, gate=gate, database=database, doings=doings
        )  # fmt: skip


def run(main: Callable[[World, Database], Awaitable[None]]) -> None:
    async def whole() -> None:
        with tempfile.TemporaryDirectory() as directory:
            home, now = Path(directory), datetime.now(UTC)
            cas = {name: OrganizationCa.create(name, home / name, now) for name in (MERCY, HOPE)}
            pems = [ca.certificate_pem for ca in cas.values()]
            raw = new_bundle("lab", pems, issued_ms=now_ms() - 1000, expires_ms=now_ms() + HOUR_MS)
            for ca in cas.values():
                raw = sign_bundle(raw, ca)
            trust = TrustStore(verify_bundle(raw, now_ms=now_ms(), own_ca=None))
            async with open_database(home / "node.db") as database:
                await main(World(home, cas, trust), database)

    trio.run(whole)


@asynccontextmanager
async def running(network: Network) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        yield
        nursery.cancel_scope.cancel()


class Places:
    """Links that come up at once, as many as there are places for; `refuses`: peers that have no place for us."""

    def __init__(self, peer_id: str, most: int) -> None:
        self.peer_id, self.changes, self.most = peer_id, Changes(), most
        self.known: dict[str, LinkState] = {}
        self.refuses: set[str] = set()

    def peers(self) -> list[LinkState]:
        return list(self.known.values())

    def state(self, peer_id: str) -> LinkState | None:
        return self.known.get(peer_id)

    def add_peer(self, peer_id: str, addresses: Sequence[str] = (), *, keep: bool = False) -> None:
        if len(self.known) >= self.most:
            raise Busy("no place")
        phase: Any = ("down", "busy: 256 peers are known") if peer_id in self.refuses else ("connected", "")
        state, reason = phase
        self.known[peer_id] = LinkState(peer_id, HOPE, "n", tuple(addresses), state, reason, 0, 0, 0, 0, 0, 0)

    async def remove_peer(self, peer_id: str) -> None:
        await trio.lowlevel.checkpoint()
        del self.known[peer_id]


def contact() -> Contact:
    peer_id = PrivateKey.generate().peer_id
    return Contact(peer_id, ("/ip4/127.0.0.1/tcp/4",), named_by=peer_id)


@pytest.mark.invariant("S7")
def test_guests_of_searches_give_their_places_to_the_next() -> None:
    """160 places, of which 20 are for searches; 16 guests at a time, once there is no other room."""

    async def main(world: World, database: Database) -> None:
        network = world.network(database, peers=160)
        links = Places(network.transport.peer_id, 160)
        network.links = network.discovery._links = links  # type: ignore[assignment]
        network.discovery.learn("somebody", [PeerHint(contact().peer_id, HOPE, ("/ip4/127.0.0.1/tcp/3",))] * 2)
        for _ in range(150):
            one = contact()
            links.add_peer(one.peer_id, one.addresses)
        stay = set(links.known)
        assert len(stay) == 151
        network._on_card(SimpleNamespace(peer_id=contact().peer_id, organization=HOPE, addresses=contact().addresses))  # type: ignore[arg-type]
        assert set(links.known) == stay, "a card alone is no reason to dial"
        for _ in range(60):
            assert await network._reach(contact()), "a guest goes, and the next one comes"
        assert len(links.known) <= 160
        assert stay <= set(links.known), "who was there before stays"
        links.most = network._config.limits.peers
        for _ in range(16):
            await links.remove_peer(stay.pop())
        for _ in range(60):
            assert await network._reach(contact())
        assert len(network._guests) == 16, "as long as there are places, so many stay"

    run(main)


def test_a_guest_that_comes_while_another_goes_breaks_no_search() -> None:
    async def main(world: World, database: Database) -> None:
        network = world.network(database, peers=160)
        links = Places(network.transport.peer_id, 170)
        network.links = network.discovery._links = links  # type: ignore[assignment]
        for one in [contact() for _ in range(162)]:
            links.add_peer(one.peer_id, one.addresses)
        network._guests = dict.fromkeys(list(links.known)[:1])
        newcomer, real = contact(), links.remove_peer

        async def remove_peer(peer_id: str) -> None:
            await real(peer_id)
            links.add_peer(newcomer.peer_id, newcomer.addresses)
            network._guests[newcomer.peer_id] = None

        links.remove_peer = remove_peer  # type: ignore[method-assign]
        await network._make_room()
        assert list(network._guests) == [newcomer.peer_id], "it is left for the next one to let go"

    run(main)


@pytest.mark.invariant("S7")
def test_a_search_gives_up_at_once_who_has_no_place() -> None:
    async def main(world: World, database: Database) -> None:
        network = world.network(database, peers=160)
        links = Places(network.transport.peer_id, 160)
        network.links = network.discovery._links = links  # type: ignore[assignment]
        full, free = contact(), contact()
        links.refuses.add(full.peer_id)
        with trio.fail_after(4):  # less than `_REACH_S`
            assert not await network._reach(full)
            assert await network._reach(free)
            assert await network._reach(free)
        links.most = len(links.known)
        with trio.fail_after(4):
            assert not await network._reach(contact())

    run(main)


@pytest.mark.invariant("S2")
@pytest.mark.parametrize("gossip", [True, False])
def test_a_revocation_that_was_written_down_holds_whatever_the_node_takes_part_in(gossip: bool) -> None:
    async def main(world: World, database: Database) -> None:
        thief = world.identity(HOPE, 2)
        known = verify_revocation(world.revocation(thief, now_ms()), world.trust.bundle, now_ms=now_ms())
        await database.transact(lambda c: revocations.keep(c, known, 1))
        world.trust.verify_chain(thief.chain, now_ms() + 1)
        async with running(world.network(database, gossip=gossip)):
            with pytest.raises(ChainInvalid, match="revoked"):
                world.trust.verify_chain(thief.chain, now_ms() + 1)

    run(main)


@pytest.mark.invariant("S7")
def test_64_revocations_wait_to_be_written_down(caplog: pytest.LogCaptureFixture) -> None:
    async def main(world: World, database: Database) -> None:
        network = world.network(database)  # it does not run: nothing is written down
        for seed in range(2, 67):
            raw = world.revocation(world.identity(HOPE, seed), now_ms())
            network._on_revoked(verify_revocation(raw, world.trust.bundle, now_ms=now_ms()))
        assert network._to_write.statistics().current_buffer_used == 64
        assert caplog.text.count("not written down") == 1

    run(main)


def test_many_revocations_are_restored_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    async def main(world: World, database: Database) -> None:
        thieves = [world.identity(HOPE, seed) for seed in range(2, 80)]
        for thief in thieves:
            raw = world.revocation(thief, now_ms())
            known = verify_revocation(raw, world.trust.bundle, now_ms=now_ms())
            await database.transact(lambda c, known=known: revocations.keep(c, known, 1))  # type: ignore[misc]
        caplog.clear()
        async with running(world.network(database)):
            assert not [record for record in caplog.records if record.name == "comity_node.network"]

    run(main)


def test_a_revocation_is_written_down_and_one_that_begins_later_is_refused_with_the_reason() -> None:
    async def main(world: World, database: Database) -> None:
        thief, began = world.identity(HOPE, 2), now_ms()
        network = world.network(database)
        async with running(network):
            first = world.revocation(thief, began - 1000)
            assert (await network.revoke(first)).raw == first
            with pytest.raises(RevocationInvalid, match="already"):
                await network.revoke(world.revocation(thief, began))
        assert await database.read(revocations.kept) == [first]

    run(main)


@pytest.mark.invariant("S7")
def test_a_peer_that_a_member_has_named_goes_on_the_account_of_that_member(monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[tuple[str, str]] = []

    def learn(source: str, hints: Sequence[PeerHint]) -> None:
        learned.extend((source, hint.peer_id) for hint in hints)

    async def main(world: World, database: Database) -> None:
        network = world.network(database)
        monkeypatch.setattr(network.discovery, "learn", learn)
        network._found("provider table", Contact("peer", ("/ip4/192.0.2.1/tcp/1",), "who named it"))
        network._found("local network", Contact("neighbour", ("/ip4/192.0.2.1/tcp/1",)))
        await trio.lowlevel.checkpoint()

    run(main)
    assert learned == [("who named it", "peer"), ("local network", "neighbour")]
