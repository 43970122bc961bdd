"""Places among the peers that a node knows: an organization's nodes, however many, leave room for the others'."""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from comity.errors import Busy
from comity.ids import SpiffeId
from comity.signing import PrivateKey
from comity.trust import (
    Attested,
    NodeIdentity,
    OrganizationCa,
    TrustStore,
    certificate_request,
    new_bundle,
    read_certificates,
    sign_bundle,
    verify_bundle,
)
from comity_node.links import LinkLimits, Links
from comity_node.transport.memory import MemoryNetwork, MemoryTransport

GOOD, EVIL, LATE = "good.example", "evil.example", "late.example"


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


@dataclass
class World:
    """Organizations with CAs that issue as many nodes as one likes, on one network."""

    trust: TrustStore
    authorities: dict[str, OrganizationCa]
    network: MemoryNetwork

    def links(self, organization: str, *, limits: LinkLimits | None = None, allow_private: bool = False) -> Links:
        key, now = PrivateKey.generate(), datetime.now(UTC)
        request = certificate_request(key, SpiffeId(organization, "node", "n1"))
        identity = NodeIdentity.of(key, read_certificates(self.authorities[organization].issue(request, now=now)))

        async def echo(_: Attested, payload: bytes) -> bytes:
            await trio.lowlevel.checkpoint()
            return payload

        return Links(
            self.network.transport(identity.peer_id),
            identity,
            self.trust,
            echo,
            now_ms=lambda: time.time_ns() // 1_000_000,
            random_bytes=bytes,
            limits=limits,
            allow_private=allow_private,
        )


def world(*organizations: str) -> World:
    now = datetime.now(UTC)
    now_ms = int(now.timestamp() * 1000)
    with tempfile.TemporaryDirectory() as home:
        authorities = {name: OrganizationCa.create(name, Path(home) / name, now) for name in organizations}
    raw = new_bundle(
        "lab", [ca.certificate_pem for ca in authorities.values()], issued_ms=now_ms, expires_ms=now_ms + 86_400_000
    )
    for ca in authorities.values():
        raw = sign_bundle(raw, ca)
    return World(TrustStore(verify_bundle(raw, now_ms=now_ms, own_ca=None)), authorities, MemoryNetwork())


@asynccontextmanager
async def running(*links: Links) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        for each in links:
            await nursery.start(each.run)
        yield nursery
        nursery.cancel_scope.cancel()


def of(node: Links, organization: str) -> list[str]:
    return [state.peer_id for state in node.peers() if state.organization == organization]


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("dialler", ["the others", "the node itself"])
def test_nodes_of_one_organization_are_bounded_and_leave_room(dialler: str) -> None:
    here = world(GOOD, EVIL, LATE)
    limits = LinkLimits(max_nodes_per_organization=3, max_peers=16)

    async def main() -> None:
        node, late = here.links(GOOD, limits=limits), here.links(LATE)
        crowd = [here.links(EVIL) for _ in range(10)]
        async with running(node, late, *crowd):
            for other in [*crowd, late]:  # all at once
                if dialler == "the others":
                    other.add_peer(node.peer_id)
                else:
                    node.add_peer(other.peer_id)
            await node.wait_for(late.peer_id, 10)
            await trio.sleep(30)
            assert len(of(node, EVIL)) == 3
            assert await late.request(node.peer_id, b"hello", 5) == b"hello"
            refused = [state for other in crowd for state in other.peers() if state.state == "down"]
            assert len(refused) == 7
            assert all("3 nodes of evil.example are known" in state.reason for state in refused)

    run(main)


@pytest.mark.invariant("S7")
def test_a_node_that_is_long_gone_gives_its_place_to_its_successor() -> None:
    here = world(GOOD, EVIL)
    limits = LinkLimits(max_nodes_per_organization=2, forget_after_s=300)

    async def main() -> None:
        node = here.links(GOOD, limits=limits)
        old, steady, new = here.links(EVIL), here.links(EVIL), here.links(EVIL)
        async with running(node, steady, new) as nursery:
            async with trio.open_nursery() as first:
                await first.start(old.run)
                for each in (old, steady):
                    each.add_peer(node.peer_id)
                    await node.wait_for(each.peer_id, 10)
                first.cancel_scope.cancel()
            new.add_peer(node.peer_id)
            await trio.sleep(250)
            assert set(of(node, EVIL)) == {old.peer_id, steady.peer_id}, "it may still come back"
            await node.wait_for(new.peer_id, 120)
            assert set(of(node, EVIL)) == {new.peer_id, steady.peer_id}
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.invariant("S7")
def test_a_full_table_makes_room_for_who_is_there_but_not_at_the_cost_of_what_must_stay() -> None:
    here = world(GOOD, EVIL, LATE)
    limits = LinkLimits(max_peers=3, forget_after_s=300)

    async def main() -> None:
        node = here.links(GOOD, limits=limits)
        up, late = here.links(EVIL), here.links(LATE)
        bootstrap, nowhere = PrivateKey.generate().peer_id, PrivateKey.generate().peer_id
        async with running(node, up, late):
            node.add_peer(bootstrap, keep=True)
            node.add_peer(nowhere)
            up.add_peer(node.peer_id)
            await node.wait_for(up.peer_id, 10)
            late.add_peer(node.peer_id)
            await node.wait_for(late.peer_id, 60)
            assert {state.peer_id for state in node.peers()} == {bootstrap, up.peer_id, late.peer_id}
            await trio.sleep(1000)
            another = here.links(LATE)
            async with trio.open_nursery() as nursery:
                await nursery.start(another.run)
                another.add_peer(node.peer_id)
                await trio.sleep(1000)
                assert {state.peer_id for state in node.peers()} == {bootstrap, up.peer_id, late.peer_id}
                nursery.cancel_scope.cancel()
            # What the operator names has a place in any case.
            node.add_peer(nowhere, keep=True)
            assert len(node.peers()) == 4

    run(main)


@pytest.mark.invariant("S7")
def test_what_nodes_of_one_organization_ask_for_is_bounded_together_and_leaves_room_for_others() -> None:
    here = world(GOOD, EVIL, LATE)
    limits = LinkLimits(max_handler_bytes=100_000, max_organization_bytes=150_000)
    ask = b"x" * 90_000

    async def main() -> None:
        node, first, second, late = (here.links(each, limits=limits) for each in (GOOD, EVIL, EVIL, LATE))
        gates = {b"x": trio.Event(), b"y": trio.Event()}

        async def slow(_: Attested, payload: bytes) -> bytes:
            await gates[payload[:1]].wait()
            return b"done"

        node._handlers.request = slow
        async with running(node, first, second, late):
            for other in (first, second, late):
                other.add_peer(node.peer_id)
                await other.wait_for(node.peer_id, 10)
            for given_up in (True, False):  # what is given up makes room, too
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(first.request, node.peer_id, ask, 60)
                    nursery.start_soon(late.request, node.peer_id, ask, 60)
                    await wait_all_tasks_blocked()
                    with pytest.raises(Busy, match="nodes of your organization"):
                        await second.request(node.peer_id, ask, 60)
                    if given_up:
                        nursery.cancel_scope.cancel()
                    else:
                        gates[b"x"].set()
                await wait_all_tasks_blocked()
            assert await second.request(node.peer_id, ask, 60) == b"done"
            assert await first.request(node.peer_id, ask, 60) == b"done"

    run(main)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("dialler", ["member", "peer"])
@pytest.mark.parametrize("allow_private", [False, True])
def test_a_peer_names_private_addresses_of_its_own_only_where_they_are_dialled(
    monkeypatch: pytest.MonkeyPatch, dialler: str, allow_private: bool
) -> None:
    here = world(GOOD, EVIL)
    private = [
        "/ip4/127.0.0.1/tcp/5432",
        "/ip4/10.0.0.1/tcp/22",
        "/ip6/::1/tcp/80",
        "/ip4/169.254.169.254/tcp/80",
        "/dns4/localhost/tcp/22",
    ]
    said = [*private, "/ip4/0.0.0.0/tcp/22", "/ip4/8.8.8.8/tcp/4101", "/dns4/evil.example/tcp/4101"]
    monkeypatch.setattr(MemoryTransport, "addresses", lambda _: said)

    async def main() -> None:
        node, other = here.links(GOOD, allow_private=allow_private), here.links(EVIL)
        async with running(node, other):
            (node if dialler == "member" else other).add_peer((other if dialler == "member" else node).peer_id)
            state = await node.wait_for(other.peer_id, 10)
            public = ("/ip4/8.8.8.8/tcp/4101", "/dns4/evil.example/tcp/4101")
            assert state.addresses == (*(private if allow_private else ()), *public)

    run(main)
