"""From a relayed connection to a direct one, over loopback, by members that listen on nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from comity_node.transport.address import Address
from comity_node.transport.dcutr import PunchLimits
from comity_node.transport.libp2p_transport import Libp2pLimits
from kit.consortium import consortium
from kit.relayed import HOPE, LOOPBACK, MERCY, STLUKES, Member, member, of, reachable, relaying, running, url

LIMITS = Libp2pLimits(retire_s=0.2)


async def better_path(node: Member, peer: Member) -> None:
    """Wait until a node is told that there is a better path."""
    told: list[str] = []

    def note(peer_id: str) -> None:
        told.append(peer_id)
        node.transport.connections.changed()

    node.transport.on_better_path(note)
    await node.transport.connections.until(lambda: peer.peer_id in told)


async def only_direct(node: Member, peer: Member) -> None:
    """Wait until the relayed connection is gone."""
    await node.transport.connections.until(lambda: relayed(node, peer) == [False])


def hide(node: Member, met: list[bool]) -> None:
    """Put a node behind a translation that takes another port for each destination; note when it tries to meet."""
    meet = node.transport.reach.meet

    async def counted(peer_id: str, port: int, addresses: Sequence[Address], *, initiator: bool) -> None:
        met.append(initiator)
        await meet(peer_id, port, addresses, initiator=initiator)

    node.transport.reach.observed_through = lambda relay: (0, Address("ip4", "127.0.0.1", 9))  # type: ignore[method-assign]
    node.transport.reach.meet = counted  # type: ignore[method-assign]


async def reconnected(node: Member, peer: Member) -> None:
    """Wait until a link that was up has gone down and come up again."""
    while True:
        version = node.links.changes.version
        state = node.links.state(peer.peer_id)
        if state is not None and state.reconnects > 0 and state.state == "connected":
            return
        await node.links.changes.wait(version)


def relayed(node: Member, peer: Member) -> list[bool]:
    """Of each connection to a peer whether it is relayed."""
    return [bool(each.relay) for each in node.transport.connections.of(peer.peer_id)]


def test_two_members_behind_a_relay_meet_half_way_and_the_relayed_connection_goes() -> None:
    everybody = consortium(MERCY, STLUKES, HOPE)
    a_id, b_id, r_id = of(everybody, MERCY, STLUKES, HOPE)

    async def main() -> None:
        relay = member(r_id, everybody.trust, listen=[LOOPBACK])
        relaying(relay, r_id)
        async with running(relay) as nursery:
            a, b = (
                member(each, everybody.trust, relays=[url(relay)], limits=LIMITS, punch=PunchLimits())
                for each in (a_id, b_id)
            )
            await nursery.start(a.run)
            await nursery.start(b.run)
            address = await reachable(b)
            a.links.add_peer(b.peer_id, [address])
            async with trio.open_nursery() as waiting:
                waiting.start_soon(better_path, a, b)
                waiting.start_soon(better_path, b, a)
            ours, theirs = a.transport.connection_info(b.peer_id), b.transport.connection_info(a.peer_id)
            assert ours is not None
            assert theirs is not None
            assert (ours.relay, theirs.relay) == ("", "")
            # Whoever has dialled through the relay has begun the handshake of the new connection.
            assert (ours.inbound, theirs.inbound) == (False, True)
            await b.transport.connections.until(lambda: b.transport.reach.puncher.upgraded > 0)
            assert (a.transport.reach.puncher.upgraded, b.transport.reach.puncher.upgraded) == (0, 1)
            # Nobody listens: it is the port from which the relay was dialled.
            seen = b.transport.reach.observed_through(relay.peer_id)
            assert seen is not None
            assert seen[0] == seen[1].port
            for node, peer in ((a, b), (b, a)):
                await only_direct(node, peer)
                await node.links.wait_for(peer.peer_id, 20)
                assert await node.links.request(peer.peer_id, b"direct", 10) == b"tcerid"

    trio.run(main)


def test_who_listens_is_dialled_back_without_a_hole() -> None:
    everybody = consortium(MERCY, STLUKES, HOPE)
    a_id, b_id, r_id = of(everybody, MERCY, STLUKES, HOPE)

    async def main() -> None:
        relay = member(r_id, everybody.trust, listen=[LOOPBACK])
        relaying(relay, r_id)
        async with running(relay) as nursery:
            a = member(a_id, everybody.trust, listen=[LOOPBACK], limits=LIMITS, punch=PunchLimits())
            b = member(b_id, everybody.trust, relays=[url(relay)], limits=LIMITS, punch=PunchLimits())
            await nursery.start(a.run)
            await nursery.start(b.run)
            a.links.add_peer(b.peer_id, [await reachable(b)])
            await better_path(b, a)
            info = b.transport.connection_info(a.peer_id)
            assert info is not None
            assert (info.relay, info.address) == ("", a.transport.addresses()[0])

    trio.run(main)


@pytest.mark.invariant("R3")
def test_where_it_does_not_work_the_relayed_connection_stays_and_it_is_not_tried_again() -> None:
    everybody = consortium(MERCY, STLUKES, HOPE)
    a_id, b_id, r_id = of(everybody, MERCY, STLUKES, HOPE)
    limits = PunchLimits(attempt_s=0.2)

    async def main() -> None:
        relay = member(r_id, everybody.trust, listen=[LOOPBACK])
        relaying(relay, r_id)
        async with running(relay) as nursery:
            a, b = (
                member(each, everybody.trust, relays=[url(relay)], limits=LIMITS, punch=limits) for each in (a_id, b_id)
            )
            met: list[bool] = []
            for node in (a, b):
                hide(node, met)
            await nursery.start(a.run)
            await nursery.start(b.run)
            address = await reachable(b)
            a.links.add_peer(b.peer_id, [address])
            await a.links.wait_for(b.peer_id, 20)
            await b.transport.connections.until(lambda: b.transport.reach.puncher.failed > 0)
            assert sorted(met) == [False] * 3 + [True] * 3
            assert relayed(a, b) == relayed(b, a) == [True]
            assert await a.links.request(b.peer_id, b"relayed", 10) == b"deyaler"
            # Another relayed connection is not upgraded for a while.
            [connection] = a.transport.connections.of(b.peer_id)
            connection.mux.close("a test")
            await reconnected(a, b)
            assert await a.links.request(b.peer_id, b"relayed", 10) == b"deyaler"
            assert len(met) == 6
            assert b.transport.reach.puncher.failed == 1

    trio.run(main)
